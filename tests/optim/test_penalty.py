import pytest

from olor_mm.optim import layer_penalty


@pytest.mark.parametrize('power', [0.0, 0.5, 1.0, 2.0, 3.7])
def test_follows_the_formula_from_input_to_head(power):
    n = 12
    levels = [layer_penalty(i, n, 0.3, 0.02, power) for i in range(n + 1)]
    assert levels == pytest.approx([0.02 + ((n - i) / n) ** power * 0.28 for i in range(n + 1)], rel=1e-12)
    assert levels[0] == pytest.approx(0.3)
    assert levels == sorted(levels, reverse=True)
    if power:
        assert levels[-1] == 0.02


def test_a_model_of_one_layer_takes_the_maximum():
    assert layer_penalty(0, 0, 0.3, 0.1, 2.0) == pytest.approx(0.3)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((0, 1, 1.5, 0.0, 1.0), r'max_level=1\.5 .*\[0, 1\]'),
        ((0, 1, 0.1, -0.5, 1.0), r'min_level=-0\.5 .*\[0, 1\]'),
        ((0, 1, 0.1, 0.2, 1.0), r'min_level=0\.2 is above max_level=0\.1'),
        ((0, 1, 0.1, 0.0, -1.0), r'power=-1\.0 '),
        ((0, 1, float('nan'), 0.0, 1.0), 'max_level=nan '),
        ((0, 1, '0.1', 0.0, 1.0), "max_level='0.1' "),
        ((2, 1, 0.1, 0.0, 1.0), r'layer=2 is outside \[0, num_layers=1\]'),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        layer_penalty(*arguments)
