"""Generated configs of rollback. A right one makes its first step with the value that was set.

A wrong one is refused before that step, by a ValueError that names the key and its value. Options of torch and MMEngine
are theirs to check and are left out.
"""

import copy
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

WORKS, EXPLAINED, UNEXPLAINED, SILENT = 'works', 'explained', 'unexplained', 'silent'
NO_NUMBERS = (None, True, '0.01', '', [0.1], {'a': 1}, math.nan, math.inf, -math.inf, 10**400, -1e-3, 1j)
NO_WORDS = ('', 'Auto', 3, None, ['lr'], {'lr': 1}, 0.5, True)
SECTION = ('paramwise_cfg', 'rollback')
STEM, HEAD = 'backbone.conv1.weight', 'head.fc.weight'
# key: right values, wrong values, and what a group of the stem has for a right one, if that is the value itself
KEYS: dict[tuple[str, ...], tuple[tuple, tuple, str | None]] = {
    (*SECTION, 'max_level'): ((0.05, 0.5, 1), (*NO_NUMBERS, 1.5, 2), 'rollback'),
    (*SECTION, 'min_level'): ((None, 0, 0.01, 0.02), (*NO_NUMBERS[1:], 1.5, 0.9), None),
    (*SECTION, 'power'): ((0, 0.5, 1, 3.0), NO_NUMBERS, None),
    (*SECTION, 'coupling'): (('lr', 'constant'), NO_WORDS, 'rollback_coupling'),
    (*SECTION, 'rule'): (('olor', 'l2sp', 'l2sp_decoupled', 'spd'), (*NO_WORDS, 'OLOR', 'sp'), 'rollback_rule'),
    (*SECTION, 'new_level'): ((0, 0.0), (*NO_NUMBERS, 0.5), None),  # 0.5 is an option of L2-SP
    (*SECTION, 'pretrained'): (
        ('auto', 'all', ['backbone'], ('backbone', 'head')),
        ('none', [], {'backbone'}, [1], ['bakbone'], ['*'], None, 3),
        None,
    ),
    (*SECTION, 'layer_index'): (
        ('block', 'tensor', {}, {'backbone.conv1': 0}),
        ('blok', None, 3, {'haed': 0}, {'backbone': -1}, {'backbone': 99}, {'backbone': 1.0}, {0: 1}),
        None,
    ),
    ('paramwise_cfg', 'layer_decay_rate'): ((0.5, 1, 1.0), (*NO_NUMBERS, 0, 1.5), None),
    ('paramwise_cfg', 'custom_keys', 'conv1', 'rollback'): ((0, 0.5, 1.0), (*NO_NUMBERS, 2), 'rollback'),
    ('optimizer', 'anchor_dtype'): (('bfloat16', torch.float16, None), ('int8', 'flot', '', 3, [1]), 'anchor_dtype'),
    ('optimizer', 'anchor_device'): (('cpu', None), ('gpu', 'cuda:99', 'meta', '', 3.5, [1]), 'anchor_device'),
    ('optimizer', 'anchor_file'): ((None,), ('no/such/file.pth', 3, ['a'], '', {'a': 1}), 'anchor_file'),
}
BASE = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    constructor='olor_mm.OLOROptimWrapperConstructor',
    paramwise_cfg=dict(rollback=dict(max_level=0.05), custom_keys={'head': dict(lr_mult=2.0)}, norm_decay_mult=0.0),
)


@dataclass(frozen=True)
class Case:
    """A change of the base config: a key, maybe misspelled, and its value."""

    path: tuple[str, ...]
    value: Any
    is_right: bool
    typo: str = ''

    def __str__(self) -> str:
        return f'{".".join(self.path[:-1])}.{self.typo or self.path[-1]}={self.value!r}'

    def config(self) -> dict:
        cfg = copy.deepcopy(BASE)
        section = cfg
        for key in self.path[:-1]:
            section = section.setdefault(key, {})
        section[self.typo or self.path[-1]] = self.value
        return cfg


def misspelled(word: str) -> st.SearchStrategy[str]:
    """A word with one letter left out, doubled, or swapped with the next."""
    places = st.integers(1, len(word) - 2)
    return st.one_of(
        places.map(lambda i: word[:i] + word[i + 1 :]),
        places.map(lambda i: word[:i] + word[i] + word[i:]),
        places.map(lambda i: word[:i] + word[i + 1] + word[i] + word[i + 2 :]),
    ).filter(lambda other: other != word)


@st.composite
def cases(draw) -> Case:
    path = draw(st.sampled_from(list(KEYS)))
    right, wrong, _ = KEYS[path]
    if path[0] == 'paramwise_cfg' and draw(st.integers(0, 4)) == 0:  # the keys of optimizers are torch's to check
        return Case(path, right[0], False, draw(misspelled(path[-1])))
    is_right = draw(st.booleans())
    return Case(path, draw(st.sampled_from(right if is_right else wrong)), is_right)


@cache
def classifier() -> torch.nn.Module:
    """A real, small classifier of mmpretrain."""
    from mmpretrain.registry import MODELS

    cfg = dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=18, stem_channels=4, base_channels=4),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=32),
    )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg)


def run_config(cfg: dict, moment: list[str]):
    """The optim wrapper of a config after one step; what was reached is noted."""
    model = copy.deepcopy(classifier())
    moment.append('build')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        wrapper = build_optim_wrapper(model, cfg)
    model.load_state_dict({k: v for k, v in classifier().state_dict().items() if 'head' not in k}, strict=False)
    with wrapper.optim_context(model):
        moment.append('step')
        loss = model(torch.ones(2, 3, 8, 8), mode='tensor')[0].square().sum()
    wrapper.update_params(loss)
    return wrapper


def group_of(wrapper, name: str) -> dict:
    return next(group for group in wrapper.optimizer.param_groups if name in group['names'])


def judge(case: Case) -> tuple[str, str]:
    """What becomes of a case, and the message or the reason."""
    moment: list[str] = []
    try:
        group = group_of(run_config(case.config(), moment), STEM)
    except Exception as error:
        named = (case.typo or case.path[-1]) in str(error) and _shown(case.value, str(error))
        early = moment[-1] == 'build' and isinstance(error, ValueError)
        return EXPLAINED if early and named and not case.is_right else UNEXPLAINED, repr(error)
    if not case.is_right:
        return SILENT, 'a wrong key or value was taken'
    option = KEYS[case.path][2]
    wanted = str(case.value).removeprefix('torch.') if option == 'anchor_dtype' and case.value else case.value
    return (WORKS, '') if option is None or group[option] == wanted else (SILENT, f'{option}={group[option]!r}')


def _shown(value: Any, message: str) -> bool:
    """Whether a message has the value, or the part of it that is wrong."""
    parts = (
        [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else []
    )
    return any(repr(part) in message for part in (value, *parts))
