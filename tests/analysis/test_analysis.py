import pytest
import torch

from olor_mm.analysis import layer_drift, prediction_agreement, upstream_state


def test_drift_is_the_relative_norm_of_each_layers_change():
    pretrained = {'a.weight': torch.tensor([3.0, 0.0]), 'a.bias': torch.tensor([4.0]), 'b.weight': torch.tensor([2.0])}
    weights = {
        'a.weight': torch.tensor([3.0, 0.6]),
        'a.bias': torch.tensor([4.8]),
        'b.weight': torch.tensor([2.0]),
        'head.weight': torch.tensor([9.0]),
    }
    index = {'a.weight': (0, 2), 'a.bias': (0, 2), 'b.weight': (1, 2), 'head.weight': (2, 2)}
    assert layer_drift(weights, pretrained, index) == pytest.approx({0: 1 / 5, 1: 0.0})
    with pytest.raises(ValueError, match='no parameter is in both'):
        layer_drift(weights, {'c': torch.ones(1)}, index)


def test_agreement_is_the_share_of_equal_first_classes():
    original = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    scores = torch.tensor([[5.0, 1.0], [0.0, 1.0], [0.0, 3.0], [2.0, 3.0]])
    assert prediction_agreement(scores, original) == 0.75
    with pytest.raises(ValueError, match='one shape'):
        prediction_agreement(scores[:2], original)
    with pytest.raises(ValueError, match='at least one image'):
        prediction_agreement(scores[:0], original[:0])


def test_a_model_that_was_not_fine_tuned_from_is_refused():
    finetuned = {'a': torch.ones(2), 'b': torch.ones(3), 'head': torch.ones(4)}
    state, origins = upstream_state(finetuned, {'a': torch.zeros(2), 'b': torch.zeros(3), 'head': torch.zeros(9)}, {})
    assert origins == {'a': 'fine-tuned', 'b': 'fine-tuned', 'head': 'pre-trained'}
    other = {'a': torch.zeros(2), 'b': torch.zeros(9), 'c': torch.zeros(1)}
    with pytest.raises(ValueError, match='only 1 of the 3 tensors .* was fine-tuned from another'):
        upstream_state(finetuned, other, {})
