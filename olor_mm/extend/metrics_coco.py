"""Average precision of old and of new classes apart. Needs mmdet."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.evaluation import CocoMetric
from mmengine.logging import print_log

from .groups import class_groups, suffixed

ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')  # those of CocoMetric for boxes and masks


class ClassGroupsCocoMetric(CocoMetric):
    """``CocoMetric`` that also gives ``bbox_mAP_old``, ``bbox_mAP_new`` and so on; without a suffix, of all classes.

    An image of ``ann_file`` may list the ids of the categories that are annotated in it as ``annotated``, as images of
    an old data set do that has no boxes of new classes. Detections of other classes count neither as right nor as false
    in that image. An image without ``annotated`` has boxes of all classes. A group without any annotation has no value.

    Args:
        old (Sequence[str]): Classes of the old model.
        new (Sequence[str], optional): Classes that were added. Default: all others.
        kwargs: Those of ``CocoMetric``.
    """

    def __init__(self, old: Sequence[str], new: Sequence[str] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.old, self.new = old, new
        self.cat_ids: Any = None

    def compute_metrics(self, results: list) -> dict[str, float]:
        if self._coco_api is not None:
            if self.cat_ids is None:
                self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
            results = [(truth, self._of_annotated(found)) for truth, found in results]
        kinds = [kind for kind in self.metrics if kind in ('bbox', 'segm')]
        values = dict(super().compute_metrics(results))
        if self.format_only or not kinds:
            return values
        if not any(len(found['labels']) for _, found in results):
            values |= self._zeros(kinds)  # CocoMetric gives nothing, and CheckpointHook would miss its key
        names = [self._coco_api.cats[category]['name'] for category in self.cat_ids]
        groups = class_groups(names, self.old, self.new)
        values |= suffixed({name: values[name] for name in self._zeros(kinds)}, 'all')
        for group, labels in groups.items():
            values |= suffixed(self._of_group(labels, results, kinds), group)
        return values

    def _items(self) -> Sequence[str]:
        return self.metric_items or ITEMS

    def _zeros(self, kinds: list[str]) -> dict[str, float]:
        return {f'{kind}_{item}': 0.0 for kind in kinds for item in self._items()}

    def _of_annotated(self, found: dict) -> dict:
        """The detections of an image that are of classes annotated in it."""
        annotated = self._coco_api.imgs[found['img_id']].get('annotated')
        return found if annotated is None else _chosen(found, np.isin(self.cat_ids, annotated))

    def _of_group(self, labels: list[int], results: list, kinds: list[str]) -> dict[str, float]:
        """The values of CocoMetric for some classes; none if no annotation is of them."""
        categories = [self.cat_ids[label] for label in labels]
        names = [self._coco_api.cats[category]['name'] for category in categories]
        if not categories or not self._coco_api.get_ann_ids(cat_ids=categories):
            print_log(f'no annotation for evaluation is of the classes {names}: they have no AP', 'current')
            return {}
        print_log(f'Of {len(labels)} classes, {names[0]} to {names[-1]}:', 'current')
        is_of_group = np.isin(np.arange(len(self.cat_ids)), labels)
        chosen = [(truth, _chosen(found, is_of_group)) for truth, found in results]
        if not any(len(found['labels']) for _, found in chosen):
            return self._zeros(kinds)
        number = np.cumsum(is_of_group) - 1  # of a label within the group
        chosen = [(truth, dict(found, labels=number[found['labels']])) for truth, found in chosen]
        part = copy.copy(self)
        part.cat_ids, part.metrics, part.classwise, part.outfile_prefix = categories, kinds, False, None
        return CocoMetric.compute_metrics(part, chosen)


def _chosen(found: dict, wanted: np.ndarray) -> dict:
    """The detections of an image whose label is wanted; ``wanted`` is a bool by label."""
    keep = wanted[found['labels']]
    return {
        name: [mask for mask, kept in zip(value, keep, strict=True) if kept] if name == 'masks' else value[keep]
        for name, value in found.items()
        if name != 'img_id'
    } | dict(img_id=found['img_id'])
