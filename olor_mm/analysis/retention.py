"""What a fine-tuned backbone still knows of the task it was pre-trained on."""

import torch


def prediction_agreement(scores: torch.Tensor, original: torch.Tensor) -> float:
    """Share of images on which two classifiers name the same class first.

    Args:
        scores (Tensor): Scores or logits of the fine-tuned model with its old head, shape (images, classes).
        original (Tensor): Those of the untouched model, same shape.

    Returns:
        float: From 0 to 1.

    Raises:
        ValueError: If the shapes differ or there is no image.
    """
    if scores.shape != original.shape or scores.ndim != 2 or not len(scores):
        raise ValueError(
            f'scores {tuple(scores.shape)} and original {tuple(original.shape)} must have one shape '
            '(images, classes), with at least one image'
        )
    return (scores.argmax(1) == original.argmax(1)).double().mean().item()
