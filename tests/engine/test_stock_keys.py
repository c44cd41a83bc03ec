"""Our keys change no learning rate and no weight decay, whatever stock keys of ``paramwise_cfg`` there are."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmcv.ops import ModulatedDeformConv2dPack
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from olor_mm.engine import OLOROptimWrapperConstructor

PARTS = ('backbone', 'backbone.0', 'backbone.1.conv', '0.', '.1', 'norm', 'conv', 'bias', 'weight', 'gamma', 'head')
MULTS = st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, 10.0])
LEVELS = st.sampled_from([0, 0.01, 0.3, 1.0])
STOCK = ('bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult', 'dwconv_decay_mult')


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dwconv, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)
        self.gamma = nn.Parameter(nn.init.ones_(self.conv.bias.new_empty(4)))


class Model(nn.Module):
    """Norms, depthwise and deformable convolutions, a bare parameter, two that are shared, one that is frozen."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleList([Block(), Block(), Block(), ModulatedDeformConv2dPack(4, 4, 3)])
        self.norm, self.head, self.second_head = nn.LayerNorm(4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.second_head.weight = self.head.weight
        self.backbone[2].norm = self.backbone[1].norm
        self.backbone[0].conv.weight.requires_grad_(False)


def custom_keys(options) -> st.SearchStrategy:
    return st.dictionaries(st.sampled_from(PARTS), st.fixed_dictionaries({}, optional=options), max_size=5)


stock_keys = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys((*STOCK, 'dcn_offset_lr_mult'), MULTS),
        'bypass_duplicate': st.booleans(),
        'custom_keys': custom_keys(dict(lr_mult=MULTS, decay_mult=MULTS)),
    },
)
section = st.fixed_dictionaries(
    {},
    optional=dict(
        max_level=st.sampled_from([0.3, 1.0]),
        min_level=st.sampled_from([None, 0, 0.005]),
        power=st.sampled_from([0, 1, 2.5]),
        pretrained=st.sampled_from(['auto', 'all', ['backbone']]),
        layer_index=st.sampled_from(['block', 'tensor', {'head': 0}]),
        coupling=st.sampled_from(['lr', 'constant']),
    ),
)
our_keys = st.fixed_dictionaries(
    dict(levels=st.dictionaries(st.sampled_from(PARTS), LEVELS, max_size=5)),
    optional=dict(rollback=section, layer_decay_rate=st.just(1)),
)
optimizers = st.sampled_from([dict(type='AdamW', lr=1e-3, weight_decay=0.05), dict(type='SGD', lr=0.1, weight_decay=1)])


def with_ours(stock: dict, ours: dict) -> dict:
    """Stock keys and ours; a level may join an entry of ``custom_keys`` or be one of its own."""
    cfg = copy.deepcopy({**stock, **{key: value for key, value in ours.items() if key != 'levels'}})
    entries = cfg.get('custom_keys', {})
    # an entry without options means something to MMEngine, and one with a level alone does not: none becomes the other
    levels = {part: level for part, level in ours['levels'].items() if entries.get(part) != {}}
    for part, level in levels.items():
        cfg.setdefault('custom_keys', {}).setdefault(part, {})['rollback'] = level
    return cfg


def rates(constructor: type, optimizer: dict, paramwise: dict) -> dict[str, tuple[float, float]]:
    model = Model()
    cfg = dict(type='OptimWrapper', optimizer=dict(optimizer))
    groups = constructor(cfg, copy.deepcopy(paramwise))(model).optimizer.param_groups
    of_parameter = {p: (group['lr'], group['weight_decay']) for group in groups for p in group['params']}
    return {name: of_parameter[p] for name, p in model.named_parameters() if p in of_parameter}


ANY_TIME = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def check(stock: dict, ours: dict, optimizer: dict) -> None:
    # torch refuses a shared parameter of the stock constructor without bypass_duplicate
    expected = rates(DefaultOptimWrapperConstructor, optimizer, {**stock, 'bypass_duplicate': True})
    assert rates(OLOROptimWrapperConstructor, optimizer, stock) == expected
    assert rates(OLOROptimWrapperConstructor, optimizer, with_ours(stock, ours)) == expected


@settings(max_examples=60, derandomize=True, **ANY_TIME)
@given(stock_keys, our_keys, optimizers)
def test_our_keys_change_no_rate_and_no_decay(stock, ours, optimizer):
    check(stock, ours, optimizer)


@pytest.mark.slow
@settings(max_examples=1000, **ANY_TIME)
@given(stock_keys, our_keys, optimizers)
def test_our_keys_change_no_rate_and_no_decay_in_a_thousand_configs(stock, ours, optimizer):
    check(stock, ours, optimizer)


def test_the_trial_tells_an_option_that_is_hidden():
    """An entry of ``custom_keys`` hides other options in MMEngine, as one with a level alone would."""
    stock, optimizer = dict(bias_lr_mult=2.0), dict(type='SGD', lr=0.1, weight_decay=1)
    check(stock, dict(levels={'backbone': 0.01}), optimizer)
    with pytest.raises(AssertionError):
        check(stock, dict(levels={}, custom_keys={'backbone': dict(lr_mult=1.0)}), optimizer)
