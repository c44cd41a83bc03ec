"""``min_level=None``: neck and heads that a checkpoint filled are pulled back too, others leave the slope at 0."""

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

import olor_mm  # noqa: F401

# max_level 0.3: from i = 0 to 3 of 3, down to 0.3 of it, or to 0
TO_HEADS, TO_ZERO = [0.3, 0.23, 0.16, 0.09], [0.3, 0.2, 0.1, 0.0]
LAYERS = ['backbone.0.weight', 'backbone.1.weight', 'backbone.2.weight', 'neck.weight', 'head.weight']


class Detector(BaseModel):
    def __init__(self, classes=2, parts=()):
        super().__init__()
        self.backbone = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
        self.neck, self.head = nn.Linear(4, 4), nn.Linear(4, classes)
        for name in parts:
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, *x, mode='loss'):
        return dict(loss=self.head(self.neck(self.backbone(torch.stack(x)))).square().mean())


@pytest.fixture
def weights(tmp_path):
    """Makes a checkpoint of a detector of three classes; ``parts`` are those that are in it."""

    def save(*parts):
        torch.manual_seed(1)
        state = {n: v for n, v in Detector(classes=3).state_dict().items() if n.startswith(parts)}
        torch.save(dict(state_dict=state), tmp_path / 'weights.pth')
        return str(tmp_path / 'weights.pth')

    return save


def trained(
    folder, load_from, model=None, epochs=1, custom_keys=None, resume=False, lr=0.01, hooks=(), **rollback
) -> Runner:
    strength = rollback if 'max_drift' in rollback else {'max_level': 0.3, **rollback}

    run = Runner(
        model or Detector(),
        str(folder),
        train_dataloader=dict(
            batch_size=2, dataset=[torch.ones(4)] * 4, sampler=dict(type='DefaultSampler', shuffle=False)
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            constructor='olor_mm.OLOROptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=lr),
            paramwise_cfg=dict(rollback=strength, custom_keys=custom_keys or {}),
        ),
        load_from=load_from,
        resume=resume,
        experiment_name=str(folder).replace('/', '_'),
    )
    for hook in hooks:
        run.register_hook(hook)
    run.train()
    return run


def levels(run: Runner) -> dict[str, float]:
    return {name: g['rollback'] for g in run.optim_wrapper.optimizer.param_groups for name in g['names']}


def slope(run: Runner) -> list[float]:
    """Levels of the layers, from the input to neck and head, which have the same."""
    found = levels(run)
    assert found['neck.weight'] == found['head.weight']
    assert all(found[name] == found[name.replace('weight', 'bias')] for name in LAYERS)
    return [pytest.approx(found[name], abs=1e-12) for name in LAYERS[:4]]


def anchored(run: Runner) -> set[str]:
    state = run.optim_wrapper.optimizer.state
    return {name.split('.')[0] for name, p in run.model.named_parameters() if state[p].get('anchor') is not None}


@pytest.mark.parametrize('min_level, expected', [(None, TO_HEADS), (0, TO_ZERO), (0.09, TO_HEADS), (0.3, [0.3] * 4)])
def test_a_loaded_neck_is_pulled_unless_a_number_says_how_much(weights, tmp_path, min_level, expected):
    """The head has other classes, so it is new and has no anchor."""
    run = trained(tmp_path / 'run', weights('backbone', 'neck', 'head.weight'), min_level=min_level)
    assert slope(run) == expected
    assert anchored(run) == {'backbone', 'neck'} if expected[-1] else {'backbone'}


@pytest.mark.parametrize('min_level, expected', [(None, TO_ZERO), (0, TO_ZERO), (0.09, TO_HEADS)])
def test_after_a_loaded_backbone_alone_the_level_falls_to_0(weights, tmp_path, min_level, expected):
    run = trained(tmp_path / 'run', weights('backbone'), min_level=min_level)
    assert slope(run) == expected
    assert anchored(run) == {'backbone'}


@pytest.mark.parametrize(
    'pretrained, expected',
    [('all', TO_HEADS), (['backbone'], TO_ZERO), (['backbone', 'neck'], TO_HEADS), (['head'], TO_HEADS)],
)
def test_what_is_declared_pretrained_counts_as_what_was_loaded_does(weights, tmp_path, pretrained, expected):
    run = trained(tmp_path / 'run', None, pretrained=pretrained)
    assert slope(run) == expected
    assert anchored(run) == {'backbone', 'neck', 'head'} if pretrained == 'all' else set(pretrained)


def test_a_frozen_neck_does_not_count(weights, tmp_path):
    model = Detector()
    run = trained(tmp_path / 'run', weights('backbone', 'neck'), model)
    assert levels(run)['head.weight'] == pytest.approx(0.09)
    model = Detector()
    model.neck.requires_grad_(False)
    run = trained(tmp_path / 'frozen', weights('backbone', 'neck'), model)
    assert levels(run)['head.weight'] == 0


def test_a_frozen_backbone_leaves_neck_and_head_to_be_pulled(weights, tmp_path):
    model = Detector(classes=3)
    model.backbone.requires_grad_(False)
    run = trained(tmp_path / 'run', weights('backbone', 'neck', 'head'), model)
    assert anchored(run) == {'neck', 'head'}
    model = Detector()
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r'max_level=0\.3'):
        trained(tmp_path / 'new', weights('backbone'), model)


def test_levels_by_hand_stay_and_are_no_reason_for_others(weights, tmp_path):
    everything = weights('backbone', 'neck', 'head')
    run = trained(
        tmp_path / 'run', everything, custom_keys={'neck': dict(rollback=0.0), 'backbone.1': dict(rollback=0.2)}
    )
    found = levels(run)
    assert (found['neck.weight'], found['backbone.1.weight']) == (0.0, 0.2)
    assert found['backbone.2.weight'] == pytest.approx(0.1)  # the head is new, and the neck has a level by hand
    run = trained(tmp_path / 'all', everything, Detector(classes=3), custom_keys={'neck': dict(rollback=0.09)})
    assert [levels(run)[name] for name in LAYERS] == [pytest.approx(level) for level in (*TO_HEADS, 0.09)]


@pytest.mark.parametrize('rule', ['l2sp', 'l2sp_decoupled', 'spd'])
def test_other_rules_have_one_level_in_all_layers(weights, tmp_path, rule):
    run = trained(tmp_path / 'run', weights('backbone', 'neck'), rule=rule)
    assert slope(run) == [0.3] * 4


@pytest.mark.parametrize('parts, expected', [(('backbone', 'neck'), TO_HEADS), (('backbone',), TO_ZERO)])
def test_a_resumed_run_goes_on_with_its_levels(weights, tmp_path, capfd, parts, expected):
    """Its checkpoint fills neck and head whatever the first one did."""
    trained(tmp_path / 'run', weights(*parts))
    capfd.readouterr()
    run = trained(tmp_path / 'run', None, epochs=2, resume=True)
    assert slope(run) == expected
    assert anchored(run) == set(parts)
    assert 'configuration has rollback=' not in ''.join(capfd.readouterr())


def test_the_level_of_a_resumed_run_is_told_if_it_is_another(weights, tmp_path, capfd):
    trained(tmp_path / 'run', weights('backbone', 'neck'))
    capfd.readouterr()
    run = trained(tmp_path / 'run', None, epochs=2, resume=True, max_level=0.2)
    assert slope(run) == TO_HEADS
    assert 'configuration has rollback=' in ''.join(capfd.readouterr())


def test_a_model_without_a_backbone_pulls_its_last_layer_where_that_was_loaded(weights, tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return x + self.b(self.a(x))

    class Classifier(BaseModel):
        def __init__(self, classes):
            super().__init__()
            self.blocks, self.last = nn.Sequential(Block(), Block(), Block()), nn.Linear(4, classes)

        def forward(self, *x, mode='loss'):
            return dict(loss=self.last(self.blocks(torch.stack(x))).square().mean())

    torch.save(dict(state_dict=Classifier(3).state_dict()), tmp_path / 'weights.pth')
    for classes, last in ((3, 0.09), (2, 0.0)):
        found = levels(trained(tmp_path / f'{classes}', str(tmp_path / 'weights.pth'), Classifier(classes)))
        assert found['last.weight'] == pytest.approx(last), found
        assert found['blocks.0.a.weight'] == 0.3


@pytest.fixture
def one_process():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('pretrained, expected', [(['backbone'], TO_ZERO), (['backbone', 'neck'], TO_HEADS)])
def test_levels_within_zero_are_those_of_its_groups(one_process, pretrained, expected):
    model = Detector()
    optimizer = dict(type='ZeroRedundancyOptimizer', optimizer_type='SGD', lr=0.01)
    rollback = dict(max_level=0.3, pretrained=pretrained)
    cfg = dict(constructor='OLOROptimWrapperConstructor', optimizer=optimizer, paramwise_cfg=dict(rollback=rollback))
    zero = build_optim_wrapper(model, cfg).optimizer
    for _ in range(2):  # by hand, so that it is the first step that settles them
        model(torch.ones(4))['loss'].backward()
        zero.step()
    for groups in (zero.param_groups, zero.optim.param_groups):
        found = {group['names'][0]: group['rollback'] for group in groups}
        assert [found[name] for name in LAYERS[:4]] == [pytest.approx(level) for level in expected]


def test_the_update_is_that_of_the_settled_level(weights, tmp_path):
    """Of the first step, in which it is settled: theta_0 is the value before it."""
    load_from = weights('backbone', 'neck', 'head')
    ends = []
    for min_level in (None, 0.09):
        torch.manual_seed(0)
        ends.append(trained(tmp_path / f'{min_level}', load_from, Detector(3), min_level=min_level).model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
