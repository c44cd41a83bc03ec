"""What the heads of a model say of an image, and whether two heads say the same of the classes they share."""

import contextlib
import copy

import torch
from torch import Tensor, nn

from olor_mm.classes import TransferReport

SIZES = (128, 224, 512, 32)  # of images, where a model does not say what it takes
TOLERANCE = 1e-5
READ_CLASSES = ('PointHead', 'MaskPointHead', 'OCRHead')  # scores of classes are their second input
COUPLED = {
    'OCRHead': 'a pixel attends to all classes',
    'SegmenterMaskTransformerHead': 'classes attend to each other',
    'IterativeDecodeHead': 'kernels of classes attend to each other',
}


def is_coupled(head: nn.Module) -> bool:
    """Whether a new class changes the outputs of the others, so that only a new order can be compared."""
    return type(head).__name__ in COUPLED


def tensors(output) -> list[Tensor]:
    """All tensors of numbers in an output, in order."""
    if torch.is_tensor(output):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = output.values()
    return [tensor for value in output for tensor in tensors(value)] if hasattr(output, '__iter__') else []


def outputs_of(head: nn.Module, output) -> list[Tensor]:
    """All tensors that a head gives, those of several instances apart."""
    parts = getattr(head, 'num_instance', 1)  # MultiInstanceBBoxHead concatenates them
    return [part for tensor in tensors(output) for part in tensor.chunk(parts, 1)] if parts > 1 else tensors(output)


class Calls:
    """Notes what a model's heads were given and said, once each, also where ``forward`` is called by name."""

    def __init__(self, model: nn.Module, report: TransferReport):
        self.heads = {head.name: model.get_submodule(head.name) for head in report.heads}
        self.found: dict[str, tuple] = {}

    def __enter__(self) -> 'Calls':
        for name, head in self.heads.items():
            head.forward = self._noting(name, head.forward)
        return self

    def __exit__(self, *_) -> None:
        for head in self.heads.values():
            vars(head).pop('forward', None)

    def _noting(self, name: str, forward):
        def note(*args, **kwargs):
            given = copy.deepcopy((args, kwargs))
            torch.manual_seed(0)  # LightHamHead draws numbers
            output = forward(*args, **kwargs)
            self.found.setdefault(name, (*given, outputs_of(self.heads[name], copy.deepcopy(output))))
            return output

        return note


@torch.no_grad()
def calls_of(model: nn.Module, report: TransferReport) -> dict[str, tuple]:
    """What the heads of a model get and give for an image: arguments, and tensors of the output, by their names."""
    asked = [size for m in model.modules() for size in (getattr(m, 'img_size', None), getattr(m, 'input_size', None))]
    sizes = [(s if isinstance(s, int) else s[-1]) for s in asked if s is not None][:1]
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    channels = 3 if channels == 12 else channels  # of every second pixel, as a Focus layer cuts images
    with Calls(model, report) as calls:
        for size in (SIZES[0], *sizes, *SIZES[1:]):
            for mode in ('tensor', 'predict'):
                with contextlib.suppress(Exception):
                    if len(calls.found) == len(calls.heads):
                        break
                    torch.manual_seed(0)
                    model(torch.rand(1, channels, size, size), samples(model, size), mode=mode)
            with contextlib.suppress(Exception):
                features = model.extract_feat(torch.rand(1, channels, size, size))
                for name, head in calls.heads.items():
                    if name not in calls.found:  # an auxiliary head
                        with contextlib.suppress(Exception):
                            head(features)
            if calls.found:
                break
    for name, head in calls.heads.items():
        if hasattr(head, 'coarse_pred_each_layer') and name not in calls.found:
            channels = head.in_channels if isinstance(head.in_channels, int) else sum(head.in_channels)
            points = torch.rand(2, channels, 20), torch.rand(2, head.num_classes, 20)
            calls.found[name] = points, {}, outputs_of(head, head(*points))
    return calls.found


def samples(model: nn.Module, size: int) -> list | None:
    """What the model's library wants to know of an image."""
    library = type(model).__module__.partition('.')[0]
    if library == 'mmpretrain':
        return None
    shape = dict(img_shape=(size, size), ori_shape=(size, size), batch_input_shape=(size, size), pad_shape=(size, size))
    if library == 'mmseg':
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    return [Sample(metainfo=dict(shape, scale_factor=(1.0, 1.0), flip=False))]


def places(size: int, classes: int, each: int, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Where a dimension has its classes, shape (classes, each), and what is of none, as the head's code reads it."""
    kinds = {base.__name__ for base in type(head).__mro__}
    if kinds & {'BBoxHead', 'FCNMaskHead', 'ArcFaceClsHead'}:  # .reshape(-1, classes, each)
        found = torch.arange(classes * each).view(classes, each)
    else:  # .reshape(-1, width), an anchor at a time
        block, first = size // each, 5 if 'YOLOV3Head' in kinds else 0
        if kinds & {'PointHead', 'MaskPointHead'} and size > 2 * classes:  # after the features that are read
            first = size - classes
        found = torch.arange(size).view(each, block)[:, first : first + classes].t()
    return found, torch.tensor([at for at in range(size) if at not in set(found.flatten().tolist())], dtype=torch.long)


def difference(
    before: Tensor, after: Tensor, sizes: tuple, more: int, head: nn.Module, old: list[str], new: list[str]
) -> float:
    """Largest difference in what two tensors have of shared classes and of none.

    Args:
        sizes (tuple): Shapes of such a tensor of some classes and of ``more`` than those.
    """
    if before.shape != sizes[0] or len(sizes[0]) != len(sizes[1]):
        raise RuntimeError(f'shape {tuple(before.shape)}, where {tuple(sizes[0])} was expected')
    things = [[name for name in names if name.startswith('thing')] for names in (old, new)]
    if getattr(head, 'num_classes', 0) == len(things[1]):  # the boxes of a panoptic model
        old, new = things
    names = [name for name in old if name in new]
    for dim, (first, second) in enumerate(zip(*sizes)):
        if first == second:
            continue
        each, rest = divmod(second - first, more)
        for_old, others = places(first, len(old), each, head)
        for_new, new_others = places(after.shape[dim], len(new), each, head)
        if rest or len(others) != len(new_others):
            raise RuntimeError(f'shapes {tuple(before.shape)} and {tuple(after.shape)}')
        here = torch.cat([for_old[[old.index(name) for name in names]].flatten(), others])
        there = torch.cat([for_new[[new.index(name) for name in names]].flatten(), new_others])
        before, after = before.index_select(dim, here), after.index_select(dim, there)
    if before.shape != after.shape:
        raise RuntimeError(f'shapes {tuple(before.shape)} and {tuple(after.shape)}')
    if before.numel() and not before.isfinite().all():
        raise RuntimeError('outputs are not finite')
    return float((before - after).abs().max()) if before.numel() else 0.0


@torch.no_grad()
def compare_outputs(calls: dict[str, tuple], model: nn.Module, sizes: dict[str, list], more: int, old, new) -> None:
    """Compare the outputs of each head on the input that the old one got; ``sizes`` is filled at the first time."""
    for name, (args, kwargs, before) in calls.items():
        head = model.get_submodule(name)
        args, kwargs = copy.deepcopy((args, kwargs))
        if type(head).__name__ in READ_CLASSES:  # scores of classes are what the head reads
            scores = torch.rand(args[1].shape[0], len(new), *args[1].shape[2:])
            for at, class_name in enumerate(old):
                scores[:, new.index(class_name)] = args[1][:, at]
            args = args[0], scores, *args[2:]
        torch.manual_seed(0)
        after = outputs_of(head, head(*args, **kwargs))
        if len(before) != len(after):
            raise RuntimeError(f'{name}: {len(before)} outputs and {len(after)}')
        shapes = sizes.setdefault(name, [(a.shape, b.shape) for a, b in zip(before, after)])
        for a, b, shape in zip(before, after, shapes):
            if is_coupled(head) and len(new) > len(old):
                continue
            found = difference(a, b, shape, more, head, old, new)
            found /= 10 if is_coupled(head) else 1  # sums over classes are in another order
            if found > TOLERANCE * max(1.0, float(a.abs().max()) if a.numel() else 1.0):
                raise RuntimeError(f'{name}: outputs of shared classes differ by {found:.2g}')
