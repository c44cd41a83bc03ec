"""The old model, run over images: boxes and masks, maps of classes, or probabilities of classes."""

import base64
import copy
import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.utils import is_list_of

from ..classes.names import checkpoint_classes
from ..engine.hooks.class_transfer import stock_classes
from ..pretrained import LoadRecord

TASKS = dict(mmpretrain='classification', mmseg='semantic_segmentation')  # of models of other libraries: detection
OF_MASKS = {'MaskFormerHead', 'Mask2FormerHead', 'SideAdapterCLIPHead'}  # whose scores of pixels are no logits


class Unusable(Exception):
    """An image that cannot be labelled; the message says why, to be read after its name."""


class Reader:
    """Reads images as a model takes them.

    Args:
        steps (Sequence[dict]): The pipeline; the first step loads the image.
        scope (str, optional): The default scope of its config.
        info: What else the pipeline reads.
    """

    def __init__(self, steps: Sequence[dict], scope: str | None, **info):
        self.scope, self.info = scope, info
        with DefaultScope.overwrite_default_scope(scope):
            self._load, *self._others = Compose(steps).transforms

    def __call__(self, file: str | os.PathLike, number: int) -> dict:
        """One image, with a number that tells it from others.

        Raises:
            Unusable: If there is no such image, or it is damaged.
        """
        sample = dict(self.info, img_path=os.fspath(file), img_id=number)
        with DefaultScope.overwrite_default_scope(self.scope):
            try:
                sample = self._load(sample)
            except Exception as error:  # a decoder raises anything for a damaged file
                raise Unusable(f'cannot be read: {" ".join(str(error).split()) or type(error).__name__}') from error
            for transform in self._others:
                sample = transform(sample)
        return sample


class OldModel:
    """A trained model, ready to predict, with the names of its classes.

    Args:
        cfg (Config): Its config; images are read and resized by its ``test_dataloader.dataset.pipeline``.
        checkpoint (str): Its weights, all of them.
        classes (Sequence[str], optional): Names of its classes, or that of one stock data set, as 'coco'. Defaults to
            those in the checkpoint.
        device (str): Where it runs.

    Raises:
        ValueError: If the checkpoint lacks weights of the model or names of classes, or has too many or too few names.
    """

    def __init__(self, cfg: Config, checkpoint: str, classes: Sequence[str] | None = None, device: str = 'cpu'):
        self.scope, self.checkpoint = cfg.get('default_scope'), checkpoint
        dataset = _test_dataset(cfg)
        model_cfg = copy.deepcopy(cfg.model)  # some models add to it
        if cfg.get('data_preprocessor'):
            model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)  # as the Runner does
        self.steps = [dict(step) for step in dataset['pipeline'] if 'Annotations' not in _name(step['type'])]
        with self._in_scope():
            self.model = MODELS.build(model_cfg)
            libraries = [cls.__module__.partition('.')[0] for cls in type(self.model).__mro__]
            self.task = next((TASKS[library] for library in libraries if library in TASKS), 'detection')
            content = _filled(self.model, checkpoint)
            self.reduce_zero_label = _reduces(dataset)
            modules = [module for name, module in self.model.named_modules() if 'rpn' not in name]  # knows one class
            counts = {n for n in (getattr(module, 'num_classes', None) for module in modules) if type(n) is int}
            self.classes = old_names(counts, classes, content, checkpoint)
        info: dict[str, Any] = dict(seg_fields=[], reduce_zero_label=False)
        if dataset.get('return_classes'):  # detectors of objects that a text names
            info |= dict(text=tuple(self.classes), caption_prompt=None, custom_entities=True)
        self.read = Reader(self.steps, self.scope, **info)
        self.model.to(device).eval()

    @contextmanager
    def _in_scope(self) -> Iterator[None]:
        with DefaultScope.overwrite_default_scope(self.scope):
            yield

    @torch.no_grad()
    def predict(self, samples: Sequence[dict]) -> list:
        """Data samples of MMEngine for images that ``read`` gave, those of one size in one batch."""
        shapes: dict[Any, list[int]] = {}  # mmseg takes one size in a batch; and no result depends on padding
        for at, sample in enumerate(samples):
            shapes.setdefault(getattr(sample['inputs'], 'shape', at), []).append(at)
        found: list = [None] * len(samples)
        with self._in_scope():
            for group in shapes.values():
                for at, result in zip(group, self.model.test_step(pseudo_collate([samples[at] for at in group]))):
                    found[at] = result
        return found

    def boxes(self, sample, floor: float = 0.0, with_masks: bool = True) -> dict[str, Any]:
        """Detections as plain data: size of the image, boxes (x, y, width, height), labels, scores; masks as RLE.

        ``best`` is the highest score of all.

        Args:
            floor (float): Detections with a lower score are left out.

        Raises:
            ValueError: If there are none because the model is of another kind.
        """
        instances = sample.get('pred_instances')
        if instances is None or 'bboxes' not in instances:
            raise ValueError(f'{type(self.model).__name__} predicts no boxes; label takes detectors with boxes')
        best = round(float(instances.scores.max()), 5) if len(instances) else 0.0
        instances = instances[instances.scores >= floor]
        height, width = sample.ori_shape[:2]
        boxes = getattr(instances.bboxes, 'tensor', instances.bboxes).cpu().double().numpy().reshape(-1, 4)
        boxes = boxes.clip(0, [width, height] * 2)  # some predict across the edge
        boxes[:, 2:] -= boxes[:, :2]
        scores, labels = (instances[name].cpu().numpy() for name in ('scores', 'labels'))
        found: dict[str, Any] = dict(size=[int(width), int(height)], best=best, labels=labels.tolist())
        if 'masks' in instances and with_masks:
            rles = _rles(instances.masks) if len(boxes) else []
            found['masks'] = [dict(rle, counts=rle['counts'].decode()) for rle in rles]
            for at in np.flatnonzero(boxes[:, 2] * boxes[:, 3] <= 0):  # SOLO and others give masks alone
                boxes[at] = _box_of(rles[at])
        return found | dict(boxes=boxes.round(3).tolist(), scores=[round(float(score), 5) for score in scores])

    def pixels(self, sample) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest class of every pixel (uint8) and its probability (float32), both (height, width)."""
        logits = sample.seg_logits.data.float()
        head = self.model.decode_head
        head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
        if len(logits) == 1:  # one output for two classes, already a probability
            best, label = torch.maximum(logits[0], 1 - logits[0]), sample.pred_sem_seg.data[0]
        elif OF_MASKS & {cls.__name__ for cls in type(head).__mro__}:
            best, label = logits.max(0)
        elif getattr(getattr(head, 'loss_decode', None), 'use_sigmoid', False):
            best, label = logits.max(0)
            best = best.sigmoid()
        else:
            best, label = logits.max(0)
            best = (best - logits.logsumexp(0)).exp()
        return label.cpu().numpy().astype(np.uint8), best.clamp(max=1).cpu().numpy()

    def log_probabilities(self, sample) -> str:
        """Natural logarithms of the probabilities of all classes, as float16 in base64.

        Raises:
            ValueError: If the classes of the model do not exclude each other.
        """
        score = sample.get('pred_score')
        if score is None or score.ndim != 1 or abs(float(score.sum()) - 1) > 1e-2:
            raise ValueError(f'{type(self.model).__name__} gives no probabilities that sum to 1; take one of one label')
        logs = score.float().clamp(min=1e-30).log().cpu().numpy()
        return base64.b64encode(logs.astype(np.float16)).decode()


def _name(kind: Any) -> str:
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def _test_dataset(cfg: Config) -> dict:
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    dataset = (loader[0] if is_list_of(loader, dict) else loader).get('dataset', {})
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    if not dataset.get('pipeline'):
        raise ValueError('the config has no test_dataloader.dataset.pipeline: set it, label reads images with it')
    return dataset


def _reduces(dataset: dict) -> bool:
    """Whether class 1 of a mask of the old data is label 0, as in ADE20K."""
    kind = dataset.get('type')
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = registry.get(kind) if isinstance(kind, str) else kind
    own = inspect.signature(kind).parameters.get('reduce_zero_label') if kind else None
    return bool(dataset.get('reduce_zero_label', own.default if own else False))


def _filled(model: torch.nn.Module, checkpoint: str) -> dict:
    """Load the weights; return the checkpoint."""
    record = LoadRecord(model)
    content = load_checkpoint(model, checkpoint, map_location='cpu', logger='silent')
    record.close()
    lacking = [name for name, p in model.named_parameters() if not record.loaded([p])]
    if lacking:
        raise ValueError(
            f'checkpoint {checkpoint!r} does not fill {len(lacking)} parameters of the model, e.g. {lacking[0]}; give '
            'the config it was trained with'
        )
    return content


def old_names(counts: set[int], names: Sequence[str] | None, content: dict, checkpoint: str) -> list[str]:
    """Names of the classes of a trained model.

    Args:
        counts (set[int]): Numbers of classes that parts of the model have.
        names (Sequence[str], optional): As the user gives them; one alone may be that of a stock data set.
        content (dict): What is in the checkpoint.
        checkpoint (str): Its file.

    Raises:
        ValueError: If there are no names, or too many or too few.
    """
    if names and len(names) == 1 and counts - {1}:
        names = stock_classes(names[0])
    found = list(names or checkpoint_classes(content) or ())
    remedy = "give all names in the order of the labels by --old-classes, or those of a stock data set, e.g. 'coco'"
    if not found:
        raise ValueError(f'checkpoint {checkpoint!r} has no names of classes; {remedy}')
    if counts and len(found) not in counts:
        source = '--old-classes' if names else f'checkpoint {checkpoint!r}'
        raise ValueError(
            f'the model has {sorted(counts)} classes and {source} {len(found)} names, {found[:3]} ...; {remedy}'
        )
    return found


def _rles(masks) -> list[dict]:
    from pycocotools import mask as coco_mask  # of mmdet; classifiers do without

    masks = masks.cpu().numpy() if isinstance(masks, torch.Tensor) else np.asarray(getattr(masks, 'masks', masks))
    return coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))


def _box_of(rle: dict) -> np.ndarray:
    from pycocotools import mask as coco_mask

    return coco_mask.toBbox(rle)
