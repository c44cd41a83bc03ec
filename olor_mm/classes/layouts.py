"""Where the classes are in the weights of a head: which heads are known, and how each orders its outputs.

A head is known by its class in mmdet, mmseg or mmpretrain, and a weight by its name in the head. The numbers of a
layout come from the head's attributes and the shape. Any other class is known as its base in one of these libraries is,
unless it overrides what computes or reads the outputs: nothing else can tell their order.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
# what tools/analysis_tools/class_heads.py has looked at: a head of a fork, or of a later release, may differ
_KNOWN = """
    AlexNet AnchorFreeHead AnchorHead ANNHead APCHead ArcFaceClsHead ASPPHead ATSSHead AutoAssignHead
    BaseCascadeDecodeHead BaseDecodeHead BaseDenseHead BaseMaskHead BBoxHead BoxInstBboxHead BoxInstMaskHead
    CCHead CdnQueryGenerator CenterNetHead CenterNetUpdateHead CentripetalHead ClsHead CoarseMaskHead
    CondInstBboxHead CondInstMaskHead ConditionalDETRHead ConformerHead ConvFCBBoxHead CornerHead CSRAClsHead
    DABDETRHead DAHead DDODHead DDQDETRHead DDRHead DecoupledSOLOHead DecoupledSOLOLightHead DeformableDETRHead
    DeiTClsHead DepthwiseSeparableASPPHead DepthwiseSeparableFCNHead DETRHead DIIHead DINOHead DMHead DNLHead
    DoubleConvFCBBoxHead DPTHead DynamicMaskHead EfficientFormerClsHead EMAHead EncHead FCNHead FCNMaskHead
    FCOSHead FoveaHead FPNHead FreeAnchorRetinaHead FSAFHead GARetinaHead GCHead GFLHead GlobalContextHead
    GuidedAnchorHead HTCMaskHead InceptionV3 ISAHead IterativeDecodeHead LADHead LDHead LeNet5 LeViTClsHead
    LightHamHead LinearClsHead LinearReIDHead LRASPPHead Mask2FormerHead Mask2FormerTrackHead MaskFormerHead
    MaskIoUHead MaskPointHead MultiInstanceBBoxHead MultiLabelClsHead MultiLabelLinearClsHead NASFCOSHead NLHead
    OCRHead PAAHead PanopticFPNHead PIDHead PISARetinaHead PISASSDHead PointHead PSAHead PSPHead RepPointsHead
    RetinaHead RetinaSepBNHead RTMDetHead RTMDetInsHead RTMDetInsSepBNHead RTMDetSepBNHead SABLHead SABLRetinaHead
    SCNetBBoxHead SCNetMaskHead SegformerHead SegmenterMaskTransformerHead SETRMLAHead SETRUPHead
    Shared2FCBBoxHead Shared4Conv1FCBBoxHead SOLOHead SOLOV2Head SSDHead StackedLinearClsHead TOODHead UPerHead
    VFNetHead VGG VigClsHead VisionTransformerClsHead YOLACTHead YOLACTProtonet YOLOFHead YOLOV3Head YOLOXHead
"""
# boxes of any class, values, boundaries between any two, what is done to all classes alike, and class names as text
_OF_NO_CLASSES = """
    RPNHead GARPNHead RegressionHead STDCHead KernelUpdateHead GroundingDINOHead ATSSVLFusionHead SideAdapterCLIPHead
"""
OF_NO_CLASSES = frozenset(_OF_NO_CLASSES.split())
KNOWN = OF_NO_CLASSES.union(_KNOWN.split())
HARMLESS = re.compile(r'init_weights|_*loss\w*|\w*target\w*|\w*assign\w*')  # what a subclass may override


@dataclass(frozen=True)
class Layout:
    """Where the classes are along one dimension of a tensor.

    The dimension is ``times`` blocks, one an anchor, of ``before`` numbers that are of no class, ``each`` numbers for
    every class in turn, and ``after`` numbers of no class, such as the background's.

    Args:
        is_input (bool): Whether the class is what the layer reads, as in the point heads of PointRend.
    """

    dim: int = 0
    before: int = 0
    each: int = 1
    after: int = 0
    times: int = 1
    is_input: bool = False

    def size(self, classes: int) -> int:
        """The length of the dimension for a number of classes."""
        return self.times * (self.before + self.each * classes + self.after)

    def classes(self, size: int) -> int | None:
        """The number of classes for a length of the dimension; None if there is none."""
        block, rest = divmod(size, self.times)
        classes, more = divmod(block - self.before - self.after, self.each)
        return None if rest or more or classes < 1 else classes

    def fits(self, shape: torch.Size, classes: int) -> bool:
        """Whether a tensor of this shape can have so many classes."""
        sane = self.before >= 0 and self.each >= 1 and 0 <= self.after <= 2 and self.times >= 1
        return sane and len(shape) > self.dim and shape[self.dim] == self.size(classes)

    def sources(self, old: int, matches: list[int | None]) -> Tensor:
        """For each place of the new dimension the place in that of ``old`` classes it comes from, -1 for a new one.

        Args:
            matches (list): For each of the new classes its index among the old ones, or None.

        Returns:
            Tensor: int64, of the length of the new dimension.
        """
        block = torch.arange(self.size(old)).view(self.times, -1)
        index = torch.tensor([-1 if match is None else match for match in matches])
        first, last = self.before, self.before + self.each * old
        rows = block[:, first:last].reshape(self.times, old, self.each)[:, index]
        rows[:, index < 0] = -1
        return torch.cat([block[:, :first], rows.flatten(1), block[:, last:]], 1).flatten()


def _rows(head: nn.Module, name: str, shape: torch.Size, classes: int) -> Layout:
    return Layout(after=shape[0] - classes)  # 0, 1 with a background, 2 in Seesaw loss


def _scores(head: nn.Module, name: str, shape: torch.Size, classes: int) -> Layout:
    """As ``BaseDenseHead.predict_by_feat`` reads them: anchor by anchor."""
    width = getattr(head, 'cls_out_channels', classes)
    return Layout(after=width - classes, times=shape[0] // width)


def _blocks(head: nn.Module, name: str, shape: torch.Size, classes: int) -> Layout:
    return Layout(each=shape[0] // classes)


def _boxes(head: nn.Module, name: str, shape: torch.Size, classes: int) -> Layout | None:
    return None if getattr(head, 'reg_class_agnostic', False) else _blocks(head, name, shape, classes)


def _yolo(head: nn.Module, name: str, shape: torch.Size, classes: int) -> Layout:
    return Layout(before=5, times=shape[0] // (5 + classes))  # box and objectness first


def _tokens(head: nn.Module, name: str, shape: torch.Size, classes: int) -> Layout:
    return Layout(dim=1)


def _inputs(head: nn.Module, name: str, shape: torch.Size, classes: int) -> Layout | None:
    reads = len(shape) > 1 and (getattr(head, 'coarse_pred_each_layer', True) or name.startswith('fcs.0.'))
    return Layout(dim=1, before=shape[1] - classes, is_input=True) if reads else None


def _last(head: nn.Module, name: str, shape: torch.Size, classes: int) -> Layout | None:
    return Layout() if int(name.split('.')[1]) == len(head.layers) - 1 else None


Kind = Callable[..., Layout | None]
# base of a head: names of weights in it, as patterns without `.weight` and `.bias`, and how classes are in them
HEADS: dict[str, dict[str, tuple[Kind, ...]]] = {
    # mmdet
    'BaseDenseHead': {
        r'(conv|retina|atss|gfl|vfnet|tood|rtm)_cls(\.\d+)?|cls_score|reppoints_cls_out': (_scores,),
        r'cls_convs\.\d+\.\d+|multi_level_conv_cls\.\d+': (_scores,),
        r'heatmap_head\.2|(tl|br)_heat\.\d+\.1\.conv|center_prior\.(mean|sigma)|cls_embed': (_rows,),
        r'convs_pred\.\d+': (_yolo,),
    },
    'BaseMaskHead': {r'conv_cls|segm_branch\.segm_conv': (_rows,)},  # SOLO, YOLACT
    'DETRHead': {r'fc_cls|(aux_)?cls_branches\.\d+': (_rows,)},
    'CdnQueryGenerator': {r'label_embedding': (_rows,)},
    'BBoxHead': {
        r'fc_cls(_ref)?(\.\d+)?|loss_cls\.cum_samples': (_rows,),
        r'fc_reg(_ref)?(\.\d+)?': (_boxes,),
    },
    'FCNMaskHead': {r'conv_logits': (_rows,), r'fc_logits': (_blocks,)},
    'MaskIoUHead': {r'fc_mask_iou': (_rows,)},
    'GlobalContextHead': {r'fc': (_rows,)},
    'LinearReIDHead': {r'classifier': (_rows,)},
    'MaskPointHead': {r'fc_logits': (_rows, _inputs), r'fcs\.\d+\.conv': (_inputs,)},
    'PanopticFPNHead': {r'conv_logits': (_rows,)},
    # mmseg
    'BaseDecodeHead': {
        r'conv_seg|(pam|cam)_conv_seg|(p|aux)_cls_seg|se_layer|mask_norm': (_rows,),
        r'cls_emb': (_tokens,),
    },
    'PointHead': {r'fc_seg': (_rows, _inputs), r'fcs\.\d+\.conv': (_inputs,)},
    # mmpretrain
    'ClsHead': {
        r'fc|fc2|head|dist_head|(conv|trans)_cls_head|layers\.head(_dist)?|head(_dist)?\.linear': (_rows,),
        r'layers\.\d+\.fc': (_last,),
        r'norm_product': (_blocks,),
    },
    'LeNet5': {r'classifier\.2': (_rows,)},
    'AlexNet': {r'classifier\.6': (_rows,)},
    'VGG': {r'classifier\.6': (_rows,)},
    'InceptionV3': {r'fc|AuxLogits\.fc': (_rows,)},
    'MultiLabelClsHead': {r'fc|csra_heads\.\d+\.head': (_rows,)},
}


def is_stock(kind: type) -> bool:
    """Whether a class is one of mmdet, mmseg or mmpretrain that has been looked at."""
    return kind.__module__.partition('.')[0] in LIBRARIES and kind.__name__ in KNOWN


def patterns_of(kind: type) -> dict[str, tuple[Kind, ...]]:
    """Patterns of the weights of classes in heads of a class, and how classes are in them; empty if none is known."""
    bases = [base.__name__ for base in kind.__mro__ if is_stock(base)]
    if not OF_NO_CLASSES.isdisjoint(bases):
        return {}
    return {pattern: kinds for base in bases for pattern, kinds in HEADS.get(base, {}).items()}


def is_free_of_classes(kind: type) -> bool:
    """Whether heads of this class have no weight that is of some classes and not of others."""
    return not OF_NO_CLASSES.isdisjoint(base.__name__ for base in kind.__mro__ if is_stock(base))


def is_of_classes(head: nn.Module, name: str) -> bool:
    """Whether the weight of this name in a head may have classes."""
    return bool(_kinds(head, name))


def layouts(head: nn.Module, name: str, shape: torch.Size, classes: int) -> list[Layout]:
    """How so many classes are in the weight of this name and shape in a known head; empty if they are not."""
    if classes not in (getattr(head, 'num_classes', classes), getattr(head, 'num_stuff_classes', classes)):
        return []
    found = [kind(head, name, shape, classes) for kind in _kinds(head, name)]
    return [layout for layout in found if layout is not None and layout.fits(shape, classes)]


def _kinds(head: nn.Module, name: str) -> tuple[Kind, ...]:
    stem = re.sub(r'\.(weight|bias)$', '', name)
    patterns = patterns_of(type(head)).items()
    return next((kinds for pattern, kinds in patterns if re.fullmatch(pattern, stem)), ())


def why_unknown(head: nn.Module) -> str:
    """Why the order of the classes in a head of these patterns is not known; '' if it is."""
    if getattr(head, 'out_channels', 0) == 1 and getattr(head, 'num_classes', 0) == 2:
        return 'it has one output for two classes'
    if getattr(head, 'with_refine', False):
        return 'it refines the boxes of one class alone'
    name = _overridden(head)
    return f'{type(head).__name__} has a {name} of its own' if name else ''


def _overridden(head: nn.Module) -> str:
    """What of a stock head another class, or the head itself, has put its own in the place of; '' if nothing."""
    kinds = type(head).__mro__
    stock = next(kind for kind in kinds if is_stock(kind))
    for own in (vars(head), *map(vars, kinds[: kinds.index(stock)])):
        for name, value in own.items():
            is_method = callable(value) and not isinstance(value, nn.Module) and not name.startswith('__')
            if is_method and hasattr(stock, name) and not HARMLESS.fullmatch(name):
                return name
    return ''
