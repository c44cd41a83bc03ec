"""Intersection over union of old and of new classes apart. Needs mmseg."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmseg.evaluation import IoUMetric

from ..classes.names import class_key
from .groups import class_groups, suffixed


class ClassGroupsIoUMetric(IoUMetric):
    """``IoUMetric`` that also gives ``mIoU_old``, ``mIoU_new`` and so on; without a suffix, of all classes.

    Args:
        old (Sequence[str]): Classes of the old model.
        new (Sequence[str], optional): Classes that were added. Default: all others.
        annotated (Mapping, optional): Folder of label maps to the names of the classes that are annotated in them, if
            not all are. Other classes are not measured there, and their prediction on ``background`` counts neither as
            right nor as false.
        background (str): The class of pixels of no annotated class.
        kwargs: Those of ``IoUMetric``.
    """

    def __init__(
        self,
        old: Sequence[str],
        new: Sequence[str] | None = None,
        annotated: Mapping[str, Sequence[str]] | None = None,
        background: str = 'background',
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.old, self.new, self.background = old, new, class_key(background)
        self.annotated = {
            os.path.join(os.path.abspath(folder), ''): names for folder, names in (annotated or {}).items()
        }

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            unknown = None if self.format_only else self._not_annotated(sample)
            if unknown is None:
                super().process(data_batch, [sample])
                continue
            predicted, label = (sample[key]['data'].squeeze() for key in ('pred_sem_seg', 'gt_sem_seg'))
            doubtful = unknown[predicted.cpu()] & torch.isin(label.cpu(), torch.tensor(self._background()))
            label = label.clone()
            label[doubtful.to(label.device)] = self.ignore_index
            super().process(data_batch, [dict(sample, gt_sem_seg=dict(data=label))])
            self.results[-1] = tuple(area * ~unknown for area in self.results[-1])

    def _not_annotated(self, sample: dict) -> torch.Tensor | None:
        """Whether each class is not annotated in the label map of a sample, bool (C,); None if all are."""
        file, classes = os.path.abspath(sample.get('seg_map_path') or ''), self.dataset_meta['classes']
        folders = [folder for folder in self.annotated if file.startswith(folder)]
        if not folders:
            return None
        known = class_groups(classes, self.annotated[max(folders, key=len)])['old']
        unknown = torch.ones(len(classes), dtype=torch.bool)
        unknown[known] = False
        return unknown

    def _background(self) -> list[int]:
        classes = self.dataset_meta['classes']
        return [index for index, name in enumerate(classes) if class_key(name) == self.background]

    def compute_metrics(self, results: list) -> dict[str, float]:
        values = dict(super().compute_metrics(results))
        if self.format_only:
            return values
        sums = [sum(areas) for areas in zip(*results, strict=True)]
        groups = class_groups(self.dataset_meta['classes'], self.old, self.new)
        values |= suffixed(values, 'all')
        for group, classes in groups.items():
            if not sums[3][[index for index in classes if index not in self._background()]].any():
                continue
            found = self.total_area_to_metrics(
                *(areas[classes] for areas in sums), self.metrics, self.nan_to_num, self.beta
            )
            for name, value in found.items():
                values[f'{"" if name == "aAcc" else "m"}{name}_{group}'] = np.round(np.nanmean(value) * 100, 2)
        return values
