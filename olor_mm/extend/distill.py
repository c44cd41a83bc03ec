"""The old classifier's probabilities as a second target of a new one with more classes."""

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional


def save_probabilities(file: Path, root: Path, classes: Sequence[str], found: Mapping[str, np.ndarray]) -> None:
    """Write natural logarithms of probabilities by file name to an ``.npz`` file that numpy reads as plain data.

    Args:
        file (Path): What to write.
        root (Path): Folder that the names begin in.
        classes (Sequence[str]): Those of the old model.
        found (Mapping): Name of an image to its logarithms, float16 (classes,).
    """
    np.savez(
        file,
        root=np.asarray(str(root)),
        classes=np.asarray(classes),
        files=np.asarray([*found]),
        log_probabilities=np.stack([*found.values()]),
    )


def decoded(logs: str) -> np.ndarray:
    """What :meth:`~olor_mm.extend.predict.OldModel.log_probabilities` gives, as an array."""
    return np.frombuffer(base64.b64decode(logs), np.float16)


class OldProbabilities:
    """Adds the old model's probabilities of an image to its label; a transform, the last before ``PackInputs``.

    The score of the label becomes one vector: the old probabilities, then 1 at the label, as :class:`DistillationLoss`
    reads it. Mixup and CutMix mix both. An image is found by its path, so the order and number of images, and the
    wrappers of their data set, do not matter. Random crops take the probabilities of the whole image.

    Args:
        file (str): What ``python -m olor_mm label`` wrote.
        num_classes (int): All classes of the new model, the old ones first.
        root (str, optional): Where the folder of the images is now, if it has been moved.
        missing_ok (bool): Images that are not in the file have their label alone, as those of old data do.

    Raises:
        ValueError: If there is no such file, or ``num_classes`` is below its number of classes; at an image that is not
            in it, or has a label above.
    """

    def __init__(self, file: str, num_classes: int, root: str | None = None, missing_ok: bool = False):
        if not os.path.isfile(file):
            raise ValueError(f'OldProbabilities.file={file!r} is not there; `python -m olor_mm label` writes it')
        with np.load(file) as content:
            self._rows = {name: at for at, name in enumerate(content['files'].tolist())}
            self._logs = content['log_probabilities']
            self.root = str(content['root']) if root is None else os.path.abspath(root)
            self.classes: list[str] = content['classes'].tolist()
        if num_classes < len(self.classes):
            fault = f'fewer than the {len(self.classes)} of {file!r}; give all classes, old and new'
            raise ValueError(f'OldProbabilities.num_classes={num_classes!r} is {fault}')
        self.file, self.num_classes, self.missing_ok = file, num_classes, missing_ok

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        label: np.ndarray = np.zeros(self.num_classes, np.float32)
        try:
            label[results['gt_label']] = 1
        except IndexError:
            fault = f'{results["img_path"]!r} has the label {results["gt_label"]}; give all classes, old and new'
            raise ValueError(f'OldProbabilities.num_classes={self.num_classes}: {fault}') from None
        row = self._row(results['img_path'])
        old = np.zeros(len(self.classes), np.float32) if row is None else np.exp(self._logs[row].astype(np.float32))
        results['gt_score'] = np.concatenate([old, label])
        return results

    def _row(self, path: str) -> int | None:
        for place in (os.path.abspath(path), os.path.realpath(path)):
            row = self._rows.get(os.path.relpath(place, self.root).replace(os.sep, '/'))
            if row is not None:
                return row
        if not self.missing_ok:
            raise ValueError(
                f'OldProbabilities.file={self.file!r} has no {path!r} below {self.root!r}; label these images, or give '
                'root, or missing_ok=True'
            )
        return None


class DistillationLoss(nn.Module):
    """A classifier's own loss, plus the distance of its old classes from the old model's probabilities.

    .. code-block:: text

        loss = own loss + weight T^2 KL(p_T || q_T)     p_T: old model's probabilities to the power 1/T, normalised
                                                        q_T = softmax(z_old / T), z_old: scores of the old classes

    Source: Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2; with scores of old classes beside new ones as in
    Li and Hoiem 2016, arXiv 1606.09282. It stands in the place of the loss of any head that calls it with scores (n,
    classes) and targets (n, classes), of :class:`OldProbabilities`; the first scores are those of the old classes.

    Args:
        loss (dict): The head's own loss.
        temperature (float): T. Defaults to 2.
        weight (float): Of the second term. Defaults to 1.

    Example:
        >>> model = dict(head=dict(loss=dict(
        ...     _delete_=True, type='olor_mm.DistillationLoss', loss=dict(type='CrossEntropyLoss'))))
    """

    def __init__(self, loss: dict, temperature: float = 2.0, weight: float = 1.0):
        super().__init__()
        for name, value, is_right in (('temperature', temperature, temperature > 0), ('weight', weight, weight >= 0)):
            if not is_right:
                raise ValueError(f'DistillationLoss.{name}={value!r}: give a number above 0')
        self.own = MODELS.build(loss)
        self.temperature, self.weight = temperature, weight

    def forward(self, cls_score: Tensor, target: Tensor, **kwargs) -> Tensor:
        """The loss, for scores (n, classes) and targets (n, old classes + classes)."""
        number = target.size(1) - cls_score.size(1) if target.ndim == 2 else 0
        if not 0 < number <= cls_score.size(1):
            raise ValueError(
                f'DistillationLoss: targets of shape {tuple(target.shape)} for scores of {tuple(cls_score.shape)} have '
                "no probabilities of old classes; put dict(type='olor_mm.OldProbabilities', ...) before PackInputs, "
                'with num_classes as in the head'
            )
        old, label = target[:, :number].float(), target[:, number:]
        takes_scores = getattr(self.own, 'use_soft', False) or getattr(self.own, 'use_sigmoid', False)
        is_mixed = bool(((label > 0) & (label < 1)).any())
        own = self.own(cls_score, label if takes_scores or is_mixed else label.argmax(1), **kwargs)
        known = old.sum(1)  # 0 for images without probabilities, and a part for those mixed with one
        p = functional.softmax(old.clamp(min=1e-30).log() / self.temperature, dim=1)
        log_q = functional.log_softmax(cls_score[:, :number].float() / self.temperature, dim=1)
        distance = (p * (p.clamp(min=1e-30).log() - log_q)).sum(1)
        return own + self.weight * self.temperature**2 * (known * distance).mean()
