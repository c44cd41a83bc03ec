"""Which parameters get an anchor where the choice is not plain, which runs are refused, and what the first line says."""

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, BaseModule
from mmengine.optim import build_optim_wrapper
from mmpretrain.models import LoRAModel, VisionTransformer
from torch import nn

import olor_mm  # noqa: F401


class Net(BaseModel):
    """A backbone, a neck and a head; what is in ``freeze`` is frozen in train(), as Swin does it."""

    def __init__(self, freeze=()):
        super().__init__()
        self.backbone = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)) for _ in range(3)))
        self.neck, self.head = nn.Linear(16, 16), nn.Linear(16, 2)
        self.freeze = freeze

    def forward(self, x, mode='loss'):
        return self.head(self.neck(self.backbone(x)))

    def init_weights(self):
        for p in self.parameters():
            nn.init.normal_(p)

    def train(self, mode=True):
        super().train(mode)
        for prefix in self.freeze:
            self.get_submodule(prefix).requires_grad_(False)
        return self


def wrapper_of(model, custom_keys=None, **rollback):
    strength = {} if 'max_drift' in rollback else dict(max_level=0.1)
    paramwise = dict(rollback=strength | rollback, custom_keys=custom_keys or {})
    cfg = dict(constructor='OLOROptimWrapperConstructor', optimizer=dict(type='SGD', lr=0.1), paramwise_cfg=paramwise)
    return build_optim_wrapper(model, cfg)


def step(model, wrapper):
    """One step that reaches every parameter; the names of those with an anchor, and what was warned of."""
    model.train()
    with wrapper.optim_context(model):
        loss = sum(p.square().sum() for p in model.parameters())
    wrapper.update_params(loss)
    optimizer = wrapper.optimizer
    names = {p: name for name, p in model.named_parameters()}
    anchors = {names[p] for p, state in optimizer.state.items() if state.get('anchor') is not None}
    return anchors, optimizer.select_pretrained.told


def load(model, *prefixes):
    """Load new values for what is under these prefixes."""
    state = {name: torch.randn(p.shape) for name, p in model.named_parameters() if name.startswith(prefixes)}
    model.load_state_dict(state, strict=False)


@pytest.fixture
def log(log):
    """What MMEngine logs, without a run."""
    MMLogger.get_instance('selection', log_level='INFO')
    return log


# --- what was added to a pre-trained model -------------------------------------------------------------------------


class Adapter(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.adapter = inner, nn.Linear(16, 1)


def add_lora(backbone):
    for block in backbone:
        block[0].lora_A, block[0].lora_B = nn.Linear(16, 1, bias=False), nn.Linear(1, 16, bias=False)


def add_adapters(backbone):
    for i, block in enumerate(backbone):
        backbone[i] = Adapter(block)


def add_prompt(backbone):
    backbone.prompt = nn.Parameter(torch.randn(2, 16))


PARTS = {'lora': add_lora, 'adapter': add_adapters, 'prompt': add_prompt}


@pytest.mark.parametrize('add', PARTS.values(), ids=PARTS)
@pytest.mark.parametrize('pretrained', ['auto', ['backbone']])
def test_parts_that_are_added_to_what_was_loaded_have_nothing_to_return_to(add, pretrained):
    model = Net()
    base = {name for name, _ in model.backbone.named_parameters()}
    model.backbone.requires_grad_(False)
    add(model.backbone)
    wrapper = wrapper_of(model, pretrained=pretrained, min_level=0)
    old = [p for p in model.backbone.parameters() if not p.requires_grad]
    assert len(old) == len(base)
    names = {p: name for name, p in model.named_parameters()}
    model.load_state_dict({names[p]: torch.randn(p.shape) for p in old}, strict=False)
    with pytest.raises(ValueError, match='what was loaded, 12 parameters, is frozen'):
        step(model, wrapper)


class Filled(BaseModule):
    """A wrapper that fills its backbone in its constructor, as those of TIMM and HuggingFace do."""

    def __init__(self, add):
        super().__init__()
        self.inner = Net().backbone
        self.inner.requires_grad_(False)
        add(self.inner)
        self._is_init = True


@pytest.mark.parametrize('add', PARTS.values(), ids=PARTS)
@pytest.mark.parametrize('pretrained', ['auto', ['backbone'], ['backbone.inner']])
def test_nor_have_those_in_a_module_that_loads_out_of_sight(add, pretrained):
    def build():
        model = Net()
        model.backbone = Filled(add)
        return model

    model = build()
    wrapper = wrapper_of(model, pretrained=pretrained, min_level=0)
    with pytest.raises(ValueError, match="is new by its size, .*max_level=0.*pretrained='all'") as refused:
        step(model, wrapper)
    assert 'backbone.inner' not in str(refused.value).replace(str(pretrained), '')
    if pretrained == 'auto':
        model = build()
        wrapper = wrapper_of(model, min_level=0.05)
        load(model, 'neck')
        anchors, _ = step(model, wrapper)
        assert anchors == {'neck.weight', 'neck.bias'}


@pytest.mark.parametrize('pretrained', ['auto', ['backbone'], ['backbone.module']])
def test_lora_of_mmpretrain_is_new(pretrained):
    arch = dict(embed_dims=64, num_layers=2, num_heads=4, feedforward_channels=128)
    vit = dict(type='mmpretrain.VisionTransformer', arch=arch, img_size=32, patch_size=16)
    model = Net()
    model.backbone = LoRAModel(module=vit, alpha=1, rank=2, targets=[dict(type='qkv')])
    assert isinstance(model.backbone.module, VisionTransformer)
    with pytest.raises(ValueError, match='is new by its size'):
        step(model, wrapper_of(model, pretrained=pretrained, min_level=0))


# --- weights that a model copies by itself -------------------------------------------------------------------------


class CopiesByItself(Net):
    def init_weights(self):
        super().init_weights()
        for p in self.backbone.parameters():
            p.data.copy_(torch.rand(p.shape))  # out of a file, where nobody sees it


@pytest.mark.parametrize('pretrained', ['auto', ['backbone'], ['backbone.0', 'neck']])
def test_weights_that_are_copied_in_place_are_refused_with_a_remedy(pretrained):
    model = CopiesByItself()
    wrapper = wrapper_of(model, pretrained=pretrained)
    model.init_weights()
    with pytest.raises(ValueError, match='no checkpoint was loaded .*(load_state_dict|load_from)'):
        step(model, wrapper)


@pytest.mark.parametrize('spoil', ['initialised', 'loaded in part'])
def test_a_prefix_covers_what_may_have_been_loaded_and_nothing_that_was_not(spoil):
    model = Net()
    wrapper = wrapper_of(model, pretrained=['backbone'])
    everything = {f'backbone.{name}' for name, _ in model.backbone.named_parameters()}
    if spoil == 'initialised':
        nn.init.normal_(model.backbone[1][0].weight)
        expected = everything - {'backbone.1.0.weight'}
    else:
        load(model, 'backbone.0', 'head')
        expected = {name for name in everything if name.startswith('backbone.0')}
    anchors, told = step(model, wrapper)
    assert anchors == expected
    assert any('count as new' in line and 'backbone.1.0.weight' in line for line in told)


# --- runs in which nothing would be rolled back --------------------------------------------------------------------


def frozen_when_built(model):
    model.backbone.requires_grad_(False)


def frozen_in_train(model):
    model.freeze = ('backbone',)


@pytest.mark.parametrize('freeze', [frozen_when_built, frozen_in_train])
@pytest.mark.parametrize('pretrained', ['auto', ['backbone'], 'all'])
def test_a_run_whose_pre_trained_part_is_frozen_is_refused(freeze, pretrained):
    model = Net()
    freeze(model)
    wrapper = wrapper_of(model, pretrained=pretrained, min_level=0)
    load(model, 'backbone')
    with pytest.raises(ValueError, match=r'rollback\.max_level=0\.1, but .*frozen'):
        step(model, wrapper)


def test_a_hook_that_freezes_after_the_optimizer_is_built_is_seen_too():
    model = Net()
    wrapper = wrapper_of(model, min_level=0)
    load(model, 'backbone')
    frozen_when_built(model)
    with pytest.raises(ValueError, match='all 12 pre-trained parameters with a level above 0 are frozen'):
        step(model, wrapper)


def test_levels_by_hand_that_are_0_everywhere_are_refused():
    model = Net()
    wrapper = wrapper_of(model, {'backbone': dict(rollback=0.0)}, min_level=0)
    load(model, 'backbone')
    with pytest.raises(ValueError, match='custom_keys set rollback=0'):
        step(model, wrapper)


def test_a_learning_rate_of_0_is_warned_of():
    model = Net()
    wrapper = wrapper_of(model, {'backbone': dict(lr_mult=0.0)}, min_level=0)
    load(model, 'backbone')
    _, told = step(model, wrapper)
    assert any('are pre-trained and not rolled back' in line and 'lr 0' in line for line in told)


def test_what_is_frozen_in_part_is_counted(log):
    model = Net(freeze=('backbone.0',))
    wrapper = wrapper_of(model, min_level=0)
    load(model, 'backbone')
    anchors, told = step(model, wrapper)
    assert len(anchors) == 8 and not told
    assert any('12 of 12' in line and '4 of them once they are trained' in line for line in log)


# --- what the first line says --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'loaded, options, expected',
    [
        (('backbone', 'neck'), dict(min_level=0), '2 more are pre-trained and have level 0 (neck 2)'),
        (('backbone', 'neck', 'head'), dict(min_level=0), '4 more are pre-trained and have level 0 (neck 2, head 2)'),
        (
            ('',),
            dict(custom_keys={'backbone.0': dict(rollback=0.0)}),
            '4 more are pre-trained and have level 0 (backbone 4)',
        ),
        (('',), dict(min_level=0.01), None),
        (('backbone',), dict(min_level=0), None),
    ],
)
def test_what_was_loaded_and_has_level_0_is_counted_where_it_is(log, loaded, options, expected):
    model = Net()
    wrapper = wrapper_of(model, **options)
    load(model, *loaded)
    step(model, wrapper)
    [line] = [line for line in log if 'pre-trained and rolled back' in line]
    assert expected in line if expected else 'have level 0' not in line


LEVEL, BUDGET = dict(min_level=0.01), dict(max_drift=0.1)


@pytest.mark.parametrize(
    'options, kind',
    [
        (LEVEL, 'level'),
        (BUDGET, 'budget'),
        (dict(LEVEL, custom_keys={'backbone.1': dict(max_drift=0.1)}), 'level or budget'),
        (dict(BUDGET, custom_keys={'backbone.1': dict(rollback=0.1)}), 'level or budget'),
        (dict(BUDGET, custom_keys={'backbone.1': dict(rollback=0.0)}), 'budget'),
        (dict(LEVEL, custom_keys={'backbone.1': dict(max_drift=0.0)}), 'level'),
    ],
    ids=str,
)
def test_the_line_names_what_is_set_a_level_or_a_budget(log, options, kind):
    model = Net()
    wrapper = wrapper_of(model, **options)
    load(model, '')
    step(model, wrapper)
    [line] = [line for line in log if 'pre-trained and rolled back' in line]
    assert f'parameter tensors with a {kind} above 0 are' in line
    assert (f'4 more are pre-trained and have {kind} 0' in line) == (
        0.0 in options.get('custom_keys', {}).get('backbone.1', {}).values()
    )


@pytest.mark.parametrize('strength', [dict(max_drift=0.1), dict(max_drift=(0.02, 0.1))], ids=str)
def test_refusals_under_a_budget_have_remedies_of_a_budget(strength):
    model = Net()
    wrapper = wrapper_of(model, **strength)
    with pytest.raises(ValueError, match='with a budget above 0.* max_level=0 instead of max_drift'):
        step(model, wrapper)
