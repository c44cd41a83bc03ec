"""Measures of how much a fine-tuned backbone still knows of the task it was pre-trained on."""

import torch
from torch.nn import functional


def prediction_agreement(scores: torch.Tensor, original: torch.Tensor) -> float:
    """Share of images on which two classifiers predict the same class; scores with a nan predict none.

    Args:
        scores (Tensor): Scores or logits of the fine-tuned model with its old head, shape (images, classes).
        original (Tensor): Those of the pre-trained model, same shape.

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
        logits (Tensor): Logits of the fine-tuned model with its old head, shape (images, classes).
        original (Tensor): Those of the pre-trained model, same shape.

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

    ||Y'X||_F^2 / (||X'X||_F ||Y'Y||_F) of features X and Y, both centred over images.

    Args:
        features (Tensor): Shape (images, channels).
        original (Tensor): Features of the same images, shape (images, channels), with any number of channels.

    Returns:
        float: From 0 to 1. It is 1 for features that differ by rotation and scale alone, and 0 if either features are
        the same for all images.

    Raises:
        ValueError: If the shapes are wrong or there are fewer than two images.
    """
    if features.ndim != 2 or original.ndim != 2 or len(features) != len(original) or len(features) < 2:
        shapes = f'features {tuple(features.shape)} and original {tuple(original.shape)}'
        raise ValueError(f'{shapes} must have the shape (images, channels), with the same two or more images')
    x, y = (f.double() - f.double().mean(0) for f in (features, original))
    norms = (x.T @ x).norm() * (y.T @ y).norm()
    return ((y.T @ x).square().sum() / norms).item() if norms else 0.0


def _check_shapes(scores: torch.Tensor, original: torch.Tensor) -> None:
    if scores.shape != original.shape or scores.ndim != 2 or not len(scores):
        shapes = f'scores {tuple(scores.shape)} and original {tuple(original.shape)}'
        raise ValueError(f'{shapes} must have one shape (images, classes), with at least one image')
