"""A trained model that stays as it is, bit for bit, and a new branch of heads that learns new classes on its features.

``type='olor_mm.ExactModel'`` takes the place of the type of a detector's or segmenter's config; all else of the config
stays, so that the old checkpoint fits by ``load_from``.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from ..classes.layouts import is_of_classes
from ..classes.names import joined_classes

TYPE = 'ExactModel'
COUNTS = ('num_classes', 'num_things_classes')
NO_CLASSES = ('rpn_head', 'train_cfg', 'test_cfg')  # parts of a model whose num_classes is not that of the data
# parts of a config that a branch does without: it reads features, and an auxiliary head would train what is frozen
NOT_OF_A_BRANCH = ('auxiliary_head', 'data_preprocessor', 'init_cfg', 'pretrained')


class ExactModel(BaseModel):
    """A frozen model with branches for new classes; an instance is also one of the old model's class.

    The old model is in eval mode whatever ``train()`` says, and has no gradients. Each branch is all that follows
    backbone and neck, with classes of its own, and starts from the old weights but for those of classes; the last
    branch is trained. A prediction is the old model's, unchanged, and then those of the branches:

    - Instances are appended, with labels after the old ones. Each part has its own cap (``max_per_img``), and there is
      no NMS between them.
    - A branch of a segmenter has one more class, none of its own. A pixel has a new class where the branch chooses one,
      and the old model's class elsewhere. ``seg_logits`` has the old outputs and then, for each new class, the highest
      of them plus what the branch's output is above that of none: a new class is highest where it is chosen.

    Args:
        old_type (str): Type of the old model.
        branches (Sequence[int]): Numbers of classes: the old model's, and those that each branch adds.
        **old: The rest of the old model's config.

    Raises:
        ValueError: If the old model allows no branch; when it is used, if the old weights are not loaded.
    """

    def __new__(cls, old_type: Any = None, *_, **__):
        if cls is not ExactModel:  # a copy of one
            return super().__new__(cls)
        kind = old_type
        if isinstance(old_type, str):
            with MODELS.switch_scope_and_registry(None) as registry:
                kind = registry.get(old_type)
        if not isinstance(kind, type):
            raise ValueError(f'model.old_type={old_type!r} is no model; give the type of the old config')
        return super().__new__(type(f'Exact{kind.__name__}', (ExactModel, kind), dict(__module__=__name__)))

    def __init__(self, old_type: Any, branches: Sequence[int], **old):
        reason = why_no_branch(old)
        if reason:
            raise ValueError(f'model.old_type={old_type!r} allows no branch: {reason}; use labels of the old model')
        super().__init__(**copy.deepcopy(old))
        kind, (first, *added) = type(self).__bases__[1], branches
        self.counts, self.num_classes = [*branches], sum(branches)
        self.is_segmenter = 'decode_head' in old
        self.new_branches = nn.ModuleList(
            kind(**_branch(old, first, number + self.is_segmenter, _OldFeatures(self))) for number in added
        )
        self._trained = f'new_branches.{len(added) - 1}.'
        self._features: dict | None = None
        self._is_filled = False
        for value in self._frozen().values():
            if value.is_floating_point():
                value.fill_(float('nan'))  # until it is loaded
        self.eval()  # in which Swin freezes its first stages
        self._had_gradients = {name for name, p in self.named_parameters() if p.requires_grad}
        for name, p in self.named_parameters():
            p.requires_grad_(name.startswith(self._trained) and p.requires_grad)
        self.train()

    def _frozen(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.state_dict().items() if not name.startswith(self._trained)}

    def init_weights(self) -> None:
        """Initialise the branch that is trained."""
        self.new_branches[-1].init_weights()

    def train(self, mode: bool = True) -> 'ExactModel':
        """Set the mode of the branch that is trained."""
        super().train(mode)
        *frozen, _ = self.new_branches
        for part in (*frozen, *(child for child in self.children() if child is not self.new_branches)):
            part.eval()
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        trained = f'{prefix}{self._trained}'
        if not any(key.startswith(trained) for key in state_dict):  # of the model before it has this branch
            for name in self._shared():
                if prefix + name in state_dict:
                    state_dict[trained + name] = state_dict[prefix + name]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _shared(self) -> Iterator[str]:
        """Names of what the trained branch can start with: of one shape, and not of classes."""
        old, branch = self._frozen(), self.new_branches[-1]
        heads = dict(branch.named_modules(remove_duplicate=False))
        for name, value in branch.state_dict().items():
            parts = name.split('.')
            above = {'.'.join(parts[:at]): '.'.join(parts[at:]) for at in range(1, len(parts))}
            is_of_head = any(is_of_classes(heads[path], rest) for path, rest in above.items())
            if name in old and old[name].shape == value.shape and not is_of_head:
                yield name

    def extract_feat(self, inputs: Tensor):
        """The old model's features; within one call of the model they are computed once for the same input."""
        key = inputs.data_ptr(), inputs.shape, inputs.stride()
        kept = {} if self._features is None else self._features
        if key not in kept:
            with torch.no_grad():
                kept[key] = inputs, super().extract_feat(inputs)  # the input too: nothing else takes its place
        features = kept[key][1]
        return [*features] if isinstance(features, list) else features

    def forward(self, *args, **kwargs):
        """As the old model's; ``mode='tensor'`` gives the old outputs alone."""
        self._features = {}
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._features = None

    def loss(self, inputs: Tensor, data_samples: list, *args, **kwargs):
        """Losses of the last branch for its classes."""
        self._require_weights()
        first = sum(self.counts[:-1])
        samples = [self._with_own_labels(sample, first, self.counts[-1]) for sample in data_samples]
        # PIDNet and others give a head more in training; what is in the backbone stays in eval mode
        self.backbone.training = True
        try:
            return self.new_branches[-1].loss(inputs, samples, *args, **kwargs)
        finally:
            self.backbone.training = False

    def predict(self, inputs: Tensor, data_samples: list | None = None, *args, **kwargs) -> list:
        """Predictions of the old model, and after them those of the branches."""
        self._require_weights()
        copies = [data_samples and [sample.clone() for sample in data_samples] for _ in self.new_branches]
        with self._as_built():
            results = super().predict(inputs, data_samples, *args, **kwargs)
            first = self.counts[0]
            for branch, samples, number in zip(self.new_branches, copies, self.counts[1:]):
                for result, found in zip(results, branch.predict(inputs, samples, *args, **kwargs)):
                    _add(result, found, first)
                first += number
        return results

    def _forward(self, *args, **kwargs):
        with self._as_built():
            return super()._forward(*args, **kwargs)

    @contextmanager
    def _as_built(self) -> Iterator[None]:
        """Give parameters their ``requires_grad`` of before: by it torch chooses how to multiply, and so rounds."""
        params = [p for name, p in self.named_parameters() if name in self._had_gradients and not p.requires_grad]
        for p in params:
            p.requires_grad_(True)
        try:
            yield
        finally:
            for p in params:
                p.requires_grad_(False)

    def _with_own_labels(self, sample, first: int, number: int):
        sample = sample.clone()
        if self.is_segmenter:
            label = sample.gt_sem_seg.data
            own = torch.where(label < first, number, label - first)
            sample.gt_sem_seg = PixelData(data=torch.where(label < first + number, own, label))  # ignored ones stay
        else:
            labels = sample.gt_instances.labels
            sample.gt_instances = sample.gt_instances[(labels >= first) & (labels < first + number)]
            sample.gt_instances.labels = sample.gt_instances.labels - first
        return sample

    def _require_weights(self) -> None:
        if not self._is_filled:
            values = {name: value for name, value in self._frozen().items() if value.is_floating_point()}
            empty = [name for name, value in values.items() if value.numel() and value.isnan().all()]
            if empty:
                raise ValueError(
                    f'{len(empty)} of {len(values)} weights of the old model are not loaded, first {empty[0]}; set '
                    'load_from to the checkpoint of the old model, all of it'
                )
            self._is_filled = True


class _OldFeatures(nn.Module):
    """The backbone of a branch: the old model's backbone and neck."""

    def __init__(self, model: ExactModel):
        super().__init__()
        self.model = (model,)  # in a tuple, so that it is no part of the branch

    def forward(self, inputs: Tensor):
        return self.model[0].extract_feat(inputs)


def _add(result, found, first: int) -> None:
    """Add the prediction of a branch, whose labels begin at ``first``, to that of the old model."""
    if 'pred_instances' in result:
        found.pred_instances.labels = found.pred_instances.labels + first
        result.pred_instances = InstanceData.cat([result.pred_instances, found.pred_instances])
    if 'seg_logits' in result:
        logits, known = found.seg_logits.data, result.seg_logits.data
        before = known.max(0, keepdim=True).values
        own = before + (logits[:-1] - logits[-1])
        best, label = own.max(0, keepdim=True)
        result.seg_logits = PixelData(data=torch.cat([known, own]))
        result.pred_sem_seg = PixelData(data=torch.where(best > before, label + first, result.pred_sem_seg.data))


def why_no_branch(model: Mapping[str, Any]) -> str:
    """Why a model of this config cannot get a branch; '' if it can."""
    if 'backbone' not in model:
        return 'it has no backbone of its own whose features a branch could read'
    if 'teacher_config' in model:
        return 'a teacher trains it, who has no new classes'
    if 'language_model' in model:
        return 'a text names its classes'
    if 'panoptic_fusion_head' in model and (model.get('test_cfg') or {}).get('panoptic_on', True):
        return 'in panoptic segmentation a pixel is of one segment, so that a new one takes it from an old one'
    return ''


def _branch(model: Mapping[str, Any], old: int, new: int, features: nn.Module) -> dict[str, Any]:
    """The config of a model without backbone and neck and with another number of classes.

    Raises:
        ValueError: If the model has no head with ``old`` classes.
    """
    none = {key: None for key in ('backbone', 'neck') if key in model}
    kept = {key: value for key, value in model.items() if key not in NOT_OF_A_BRANCH} | none
    if old not in class_counts(kept):
        raise ValueError(f'model.branches begins with {old}, and no head has num_classes={old}; correct it')
    return {**copy.deepcopy(_with_classes(kept, old, new)), 'backbone': dict(type=lambda: features)}


def class_counts(node: Any) -> set[int]:
    """Numbers of classes in a model's config."""
    if isinstance(node, (list, tuple)):
        return set().union(*map(class_counts, node))
    if not isinstance(node, dict):
        return set()
    found = {value for key, value in node.items() if key in COUNTS and isinstance(value, int)}
    found |= {sum(node['branches'])} if 'old_type' in node else set()
    return found.union(*(class_counts(value) for key, value in node.items() if key not in NO_CLASSES))


def _with_classes(node: Any, old: int, new: int) -> Any:
    if isinstance(node, (list, tuple)):
        return type(node)(_with_classes(value, old, new) for value in node)
    if not isinstance(node, dict):
        return node
    changed = {key: value if key == 'rpn_head' else _with_classes(value, old, new) for key, value in node.items()}
    for key, value in node.items():
        if (key in COUNTS and value == old) or (key == 'out_channels' and value == 1):  # one output for two classes
            changed[key] = new
        elif key == 'class_weight' and isinstance(value, (list, tuple)):  # the rest is of the background
            changed[key] = [1.0] * new + [*value[old:]]
    return type(node)(changed)


def exact_settings(cfg: Config, old: Sequence[str], new: Sequence[str]) -> dict[str, Any]:
    """What changes in a config of the old classes, to be merged into it: ``model``, and ``custom_hooks`` if they do.

    A config that has a branch already gets one more.

    Args:
        cfg (Config): Of the old model.
        old (Sequence[str]): Its classes.
        new (Sequence[str]): Those of the new data; old ones among them are left out.

    Raises:
        ValueError: If the model allows no branch, no class is new, or names collide.
    """
    model, added = cfg.model, len(joined_classes(old, new)) - len(old)
    if not added:
        raise ValueError(f'no class of {[*new][:5]} is new; give the classes of the new data')
    if reason := why_no_branch(model):
        raise ValueError(f'model.type={model.type!r} allows no branch: {reason}; use labels of the old model')
    known = sum(model.get('branches', [len(old)]))
    if known != len(old):
        raise ValueError(f'model.branches={model.branches} are {known} classes, not {len(old)}; give all old ones')
    if str(model.type).rpartition('.')[2] == TYPE:
        settings: dict[str, Any] = dict(branches=[*model.branches, added])
    else:
        settings = dict(type=f'olor_mm.{TYPE}', old_type=model.type, branches=[len(old), added])
    hooks = [fitting_hook(hook) for hook in cfg.get('custom_hooks') or []]
    changed: dict[str, Any] = dict(model=settings)
    if hooks != (cfg.get('custom_hooks') or []):
        changed['custom_hooks'] = [hook for hook in hooks if hook]
    return changed


def fitting_hook(hook: dict) -> dict | None:
    """A hook as it suits a model with branches; None for one that does not."""
    kind = str(hook['type']).rpartition('.')[2]
    if kind == 'NumClassCheckHook':  # no head has all classes
        return None
    if kind == 'EMAHook' and str(hook.get('ema_type')).rpartition('.')[2] == 'ExpMomentumEMA':
        # of some versions of mmdet: rounds what does not change
        return {**hook, 'ema_type': 'MomentumAnnealingEMA'}
    return hook


def exact_config(cfg: Config, old: Sequence[str], new: Sequence[str]) -> Config:
    """A copy of the old model's config that learns new classes in a branch; see :func:`exact_settings`.

    Set ``load_from`` to the old checkpoint, and data whose classes are ``joined_classes(old, new)``.
    """
    changed = copy.deepcopy(cfg)
    changed.merge_from_dict(exact_settings(cfg, old, new))
    return changed
