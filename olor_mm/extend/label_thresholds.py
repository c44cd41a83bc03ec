"""The threshold of each class at which the old model's labels have the best F1 on data that has labels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .label import FAULT, Record
from .label_boxes import OVERLAP, overlaps

BINS = 200  # of probabilities of pixels


def best_threshold(scores: Sequence[float] | np.ndarray, hits: Sequence | np.ndarray, wanted: float) -> float:
    """The score from which on predictions have the best F1; of equal ones the highest.

    Args:
        scores: Of predictions.
        hits: Of each, how many are right, and how many there are; more than one for pixels of equal scores.
        wanted (float): How many there are to be found.
    """
    order = np.argsort(-np.asarray(scores), kind='stable')
    scores, hits = np.asarray(scores)[order], np.asarray(hits, float)[order]
    right, made = (hits[:, 0].cumsum(), hits[:, 1].cumsum())
    is_last = np.append(scores[1:] != scores[:-1], True)  # a threshold takes all of one score
    f1 = np.where(is_last, 2 * right / (made + wanted), -1)
    return float(scores[f1.argmax()])


def of_boxes(
    content: Mapping[str, Any], ids: Mapping[Any, int], records: Mapping[str, Record], number: int
) -> list[float | None]:
    """Thresholds by class for detections; None for a class that has no annotation, or that no detection finds.

    A detection is right if its IoU with an annotation of its class that no better one has is at least 0.5. Within a
    crowd it is neither right nor wrong.

    Args:
        content (Mapping): What is in the annotation file of COCO.
        ids (Mapping): Id of a category in it to the label of the old model.
        records (Mapping): As for :func:`~olor_mm.extend.label_boxes.labelled`.
        number (int): How many classes the old model has.
    """
    own: dict[Any, list[dict]] = {}
    for annotation in content['annotations']:
        own.setdefault(annotation['image_id'], []).append(annotation)
    found: list[list[tuple[float, bool]]] = [[] for _ in range(number)]
    wanted = [0] * number
    for image in content['images']:
        record = records[image['file_name']]
        if FAULT in record:
            continue
        entries = [a for a in own.get(image['id'], ()) if a['category_id'] in ids]
        for label in {*record['labels'], *(ids[a['category_id']] for a in entries)}:
            truth = [a for a in entries if ids[a['category_id']] == label]
            crowds = [bool(a.get('iscrowd') or a.get('ignore')) for a in truth]
            wanted[label] += len(crowds) - sum(crowds)
            mine = [at for at, other in enumerate(record['labels']) if other == label]
            boxes = [record['boxes'][at] for at in mine]
            found[label] += _matches(boxes, [record['scores'][at] for at in mine], [a['bbox'] for a in truth], crowds)
    return [_best(matches, wanted[label]) for label, matches in enumerate(found)]


def _best(matches: list[tuple[float, bool]], wanted: int) -> float | None:
    if not wanted or not any(hit for _, hit in matches):
        return None
    return best_threshold([score for score, _ in matches], [(hit, 1) for _, hit in matches], wanted)


def _matches(boxes: list, scores: list[float], truth: list, crowds: list[bool]) -> Iterable[tuple[float, bool]]:
    """Score of each detection of one class in one image, and whether it is right."""
    shared = overlaps(boxes, truth, crowds)
    is_free = ~np.asarray(crowds, bool)
    for at in np.argsort(-np.asarray(scores), kind='stable'):
        candidates = np.where(is_free, shared[at], -1)
        best = int(candidates.argmax()) if len(truth) else 0
        if len(truth) and candidates[best] >= OVERLAP:
            is_free[best] = False
            yield scores[at], True
        elif not (shared[at] * np.asarray(crowds, bool) > OVERLAP).any():
            yield scores[at], False


def histograms(mask: np.ndarray, labels: np.ndarray, scores: np.ndarray, ignored: int) -> dict[str, Any]:
    """Of an image, by class: pixels predicted right and predicted at all for each score, and pixels to be found."""
    counted = mask != ignored
    mask, labels = mask[counted].astype(int), labels[counted].astype(int)
    steps = np.minimum((scores[counted] * BINS).astype(int), BINS - 1)
    found: dict[str, Any] = dict(wanted={}, steps={})
    for label in np.unique(np.concatenate([mask, labels])).tolist():
        found['wanted'][label] = int((mask == label).sum())
        chosen = labels == label
        made = np.bincount(steps[chosen], minlength=BINS)
        right = np.bincount(steps[chosen & (mask == label)], minlength=BINS)
        found['steps'][label] = [[int(at), int(right[at]), int(made[at])] for at in np.flatnonzero(made)]
    return found


def of_pixels(records: Iterable[Record], number: int) -> list[float | None]:
    """Thresholds by class for pixels, of :func:`histograms`; None for a class that is in no mask, or never found."""
    counts, wanted = np.zeros((number, BINS, 2)), [0] * number
    for record in records:
        for label, pixels in record.get('wanted', {}).items():
            wanted[int(label)] += pixels
            for at, right, made in record['steps'][label]:
                counts[int(label), at] += right, made
    scores = np.arange(BINS) / BINS
    return [
        best_threshold(scores, counts[label], wanted[label]) if wanted[label] and counts[label, :, 0].any() else None
        for label in range(number)
    ]
