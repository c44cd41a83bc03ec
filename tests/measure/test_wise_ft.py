"""WiSE-FT between two state dicts."""

import pytest
import torch

from olor_mm.measure import interpolate


def models() -> tuple[dict, dict]:
    generator = torch.Generator().manual_seed(0)
    start = {
        'conv.weight': torch.randn(4, 3, generator=generator),
        'bn.running_var': torch.rand(4, generator=generator),
        'bn.num_batches_tracked': torch.tensor(7),
        'fc.weight': torch.randn(9, 4, generator=generator),
        'old.weight': torch.randn(2, generator=generator),
    }
    end = {f'backbone.{k}': v + 1 for k, v in start.items() if k != 'old.weight'}
    end['backbone.fc.weight'], end['head.weight'] = torch.randn(3, 4), torch.randn(5)
    return start, end


@pytest.mark.parametrize('alpha', [0.0, 0.3, 1.0])
def test_weights_and_statistics_are_interpolated_and_the_rest_is_fine_tuned(alpha):
    start, end = models()
    state, kept = interpolate(start, end, alpha, 'backbone.')
    assert list(state) == list(end)
    for name in ('conv.weight', 'bn.running_var'):
        expected = (1 - alpha) * start[name].double() + alpha * end[f'backbone.{name}'].double()
        torch.testing.assert_close(state[f'backbone.{name}'].double(), expected, rtol=1e-6, atol=1e-7)
        assert state[f'backbone.{name}'].dtype == torch.float32
    assert state['backbone.bn.num_batches_tracked'] == 8
    assert kept == {
        'backbone.fc.weight': 'of shape (9, 4) in the pre-trained model and (3, 4) here',
        'head.weight': 'not in the pre-trained model',
    }
    for name in kept:
        assert torch.equal(state[name], end[name])


def test_the_ends_are_the_two_models_to_the_bit():
    start, end = models()
    assert torch.equal(
        interpolate(start, end, 1.0, 'backbone.')[0]['backbone.conv.weight'], end['backbone.conv.weight']
    )
    assert torch.equal(interpolate(start, end, 0.0, 'backbone.')[0]['backbone.conv.weight'], start['conv.weight'])


@pytest.mark.parametrize('alpha', [-0.1, 1.5, float('nan')])
def test_a_share_outside_of_the_two_models_is_refused(alpha):
    with pytest.raises(ValueError, match=rf'alpha={alpha} is not in \[0, 1\]'):
        interpolate(*models(), alpha, 'backbone.')


def test_models_with_little_in_common_are_refused_and_a_prefix_that_fits_is_named():
    start, end = models()
    del start['old.weight'], start['fc.weight']
    found = r"^prefix='': only 0 of the 2 .* 'conv.weight', .* 'backbone.conv.weight'; give prefix='backbone.'$"
    with pytest.raises(ValueError, match=found):
        interpolate(start, end, 0.5)
    start.update({f'layer{i}.weight': torch.zeros(2) for i in range(3)})  # as in another library
    with pytest.raises(ValueError, match="^prefix='backbone.': only 2 of the 5 .* as its library names them$"):
        interpolate(start, end, 0.5, 'backbone.')
