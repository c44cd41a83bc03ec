"""``max_drift`` in a config: a budget for every layer, held in every iteration."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from test_levels_of_heads import Detector, trained

from olor_mm.layers import rollback_groups
from olor_mm.optim import layer_budget


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(1)
    model = Detector(classes=3)
    with torch.no_grad():
        model.neck.bias.zero_()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    return str(tmp_path / 'weights.pth')


class Watch(Hook):
    """Notes the drift of every anchored parameter, relative to the norm that its budget is a share of."""

    def __init__(self):
        self.found = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        optimizer = runner.optim_wrapper.optimizer
        names = {p: name for name, p in runner.model.named_parameters()}
        anchored = [p for p in names if optimizer.anchor_of(p) is not None]
        with torch.no_grad():
            drifts = {names[p]: float((p - optimizer.anchor_of(p)).norm()) / optimizer.norm_of(p) for p in anchored}
        self.found.append(drifts)


def budgets(optimizer) -> dict[str, float]:
    return {name: group['rollback_drift'] for group in optimizer.param_groups for name in group['names']}


def test_a_run_holds_every_pretrained_tensor_to_its_budget_and_leaves_new_ones_free(tmp_path, weights):
    watch = Watch()
    run = trained(tmp_path, weights, hooks=[watch], epochs=10, lr=0.5, max_drift=0.02)
    start = torch.load(weights, weights_only=True)['state_dict']
    assert len(watch.found) == 20
    for drifts in watch.found:
        assert drifts.keys() == {name for name in start if not name.startswith('head')}
        assert max(drifts.values()) <= 0.02 * (1 + 1e-5)
    assert max(watch.found[-1].values()) > 0.001
    assert run.model.neck.bias.abs().max() > 0  # zeros in the checkpoint
    assert run.optim_wrapper.optimizer.anchor_of(run.model.head.weight) is None


def test_of_two_budgets_the_first_is_at_the_input_and_the_second_at_the_head(tmp_path, weights):
    found = budgets(trained(tmp_path, weights, max_drift=(0.02, 0.1), power=2.0).optim_wrapper.optimizer)
    expected = {f'backbone.{i}.weight': 0.02 + (i / 3) ** 2 * 0.08 for i in range(3)}
    expected |= {'neck.weight': 0.1, 'head.weight': 0.1}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_entries_of_custom_keys_have_budgets_or_levels_of_their_own(tmp_path, weights):
    keys = {'neck': dict(max_drift=0.5), 'backbone.0': dict(rollback=0.3), 'backbone.1': dict(max_drift=0.0)}
    optimizer = trained(tmp_path, weights, custom_keys=keys, max_drift=0.05).optim_wrapper.optimizer
    found = {
        name: (group['rollback_rule'], group['rollback']) for group in optimizer.param_groups for name in group['names']
    }
    assert found['neck.weight'] == ('drift', 0.5)
    assert found['backbone.0.weight'] == ('olor', 0.3)
    assert found['backbone.1.weight'] == ('olor', 0.0)
    assert found['backbone.2.weight'] == ('drift', 0.05)


def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_stopped(tmp_path, weights):
    def model():
        torch.manual_seed(2)
        return Detector()

    whole = trained(tmp_path / 'whole', weights, model(), epochs=4, lr=0.5, max_drift=0.02)
    trained(tmp_path / 'parts', weights, model(), epochs=2, lr=0.5, max_drift=0.02)
    resumed = trained(tmp_path / 'parts', None, epochs=4, lr=0.5, resume=True, max_drift=0.02)
    assert resumed.iter == whole.iter
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize('value', [0, -0.1, float('nan'), '0.1', True, (0.1,), (0.1, 0.0), (0.1, 0.2, 0.3), {}])
def test_what_is_no_budget_is_refused_by_key_and_value(value):
    with pytest.raises(ValueError, match=r'rollback\.max_drift') as error:
        built(max_drift=value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    'key, value',
    [('max_level', 0.1), ('min_level', 0.0), ('rule', 'spd'), ('coupling', 'constant'), ('new_level', 0.1)],
)
def test_a_budget_and_options_of_levels_are_refused_together(key, value):
    with pytest.raises(ValueError, match=rf'max_drift=0\.05 and {key}={value!r}'):
        built(max_drift=0.05, **{key: value})


def built(**rollback):
    cfg = dict(
        constructor='olor_mm.OLOROptimWrapperConstructor',
        optimizer=dict(type='SGD', lr=0.01),
        paramwise_cfg=dict(rollback=rollback),
    )
    return build_optim_wrapper(Detector(), cfg)


def test_groups_for_plain_pytorch_have_budgets_too():
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    known = ['0.weight', '0.bias', '1.weight', '1.bias']
    groups = rollback_groups(model, pretrained=known, max_drift=(0.1, 0.3))
    found = {name: group['rollback_drift'] for group in groups for name in group['names']}
    assert found['0.weight'] == layer_budget(0, 3, (0.1, 0.3)) == 0.1
    assert found['1.weight'] == pytest.approx(0.1 + 0.2 / 3)
    assert found['2.weight'] == 0.0
    with pytest.raises(ValueError, match='max_drift=-1'):
        rollback_groups(model, max_drift=-1)
