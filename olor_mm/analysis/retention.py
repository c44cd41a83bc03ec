"""What a fine-tuned backbone still knows of the task it was pre-trained on."""

import torch
from torch.nn import functional


def prediction_agreement(scores: torch.Tensor, original: torch.Tensor) -> float:
    """Share of images on which two classifiers name the same class first; one whose scores have a nan names none.

    Args:
        scores (Tensor): Scores or logits of the fine-tuned model with its old head, shape (images, classes).
        original (Tensor): Those of the untouched model, same shape.

    Returns:
        float: From 0 to 1.

    Raises:
        ValueError: If the shapes differ or there is no image.
    """
    _check_shapes(scores, original)
    is_same = (scores.argmax(1) == original.argmax(1)) & ~scores.isnan().any(1)
    return is_same.double().mean().item()


def prediction_divergence(logits: torch.Tensor, original: torch.Tensor) -> float:
    """Kullback-Leibler divergence KL(original || current) of two classifiers' predictions, mean over images.

    Args:
        logits (Tensor): Of the fine-tuned model with its old head, before softmax, shape (images, classes).
        original (Tensor): Those of the untouched model, same shape.

    Returns:
        float: In nats, 0 or more.

    Raises:
        ValueError: If the shapes differ or there is no image.
    """
    _check_shapes(logits, original)
    current, start = (scores.double().log_softmax(1) for scores in (logits, original))
    return functional.kl_div(current, start, reduction='batchmean', log_target=True).item()


def linear_cka(features: torch.Tensor, original: torch.Tensor) -> float:
    """Linear centred kernel alignment of two sets of features (Kornblith et al., ICML 2019, arXiv 1905.00414).

    ||Y'X||_F^2 / (||X'X||_F ||Y'Y||_F) of features X and Y with their mean over images taken off.

    Args:
        features (Tensor): Shape (images, channels).
        original (Tensor): Features of the same images, shape (images, channels), with any number of channels.

    Returns:
        float: From 0 to 1, which is reached by features that differ by rotation and scale alone; 0 if those of either
        side are the same for all images.

    Raises:
        ValueError: If these are no features of two images or more.
    """
    if features.ndim != 2 or original.ndim != 2 or len(features) != len(original) or len(features) < 2:
        raise ValueError(
            f'features {tuple(features.shape)} and original {tuple(original.shape)} must be of shape '
            '(images, channels), of the same images, two or more'
        )
    x, y = (f.double() - f.double().mean(0) for f in (features, original))
    norms = (x.T @ x).norm() * (y.T @ y).norm()
    return ((y.T @ x).square().sum() / norms).item() if norms else 0.0


def _check_shapes(scores: torch.Tensor, original: torch.Tensor) -> None:
    if scores.shape != original.shape or scores.ndim != 2 or not len(scores):
        raise ValueError(
            f'scores {tuple(scores.shape)} and original {tuple(original.shape)} must have one shape '
            '(images, classes), with at least one image'
        )
