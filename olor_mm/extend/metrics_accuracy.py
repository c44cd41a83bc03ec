"""Accuracy on images of old and of new classes apart. Needs mmpretrain."""

from collections.abc import Sequence

from mmpretrain.evaluation import Accuracy

from .groups import class_groups, suffixed


class ClassGroupsAccuracy(Accuracy):
    """``Accuracy`` that also gives ``top1_old``, ``top1_new`` and so on; without a suffix, of images of all classes.

    The images are parted by their true class, and the prediction is among all classes.

    Args:
        old (Sequence[str]): Classes of the old model.
        new (Sequence[str], optional): Classes that were added. Default: all others.
        kwargs: Those of ``Accuracy``.
    """

    def __init__(self, old: Sequence[str], new: Sequence[str] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.old, self.new = old, new

    def compute_metrics(self, results: list) -> dict[str, float]:
        values = dict(super().compute_metrics(results))
        values |= suffixed(values, 'all')
        for group, classes in class_groups(self.dataset_meta['classes'], self.old, self.new).items():
            chosen = [result for result in results if int(result['gt_label']) in classes]
            if chosen:
                values |= suffixed(super().compute_metrics(chosen), group)
        return values
