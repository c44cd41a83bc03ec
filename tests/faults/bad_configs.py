"""Generated configs, good and bad: each one works, or is answered by one error that says what would be right.

    python tests/faults/bad_configs.py [--configs 2000] [--command-lines 400] [--seed 0]

A row of every case is appended to work_dirs/reliability/{bad_configs,command_lines}.jsonl. The outcome is 'works' (the
first step was made and what was set is what holds), 'explained', 'unexplained' (another error, or too late) or 'silent'
(a wrong value was taken, or a right one without effect).
"""

import argparse
import contextlib
import copy
import json
import logging
import math
import re
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

import olor_mm

ROOT = Path(__file__).parents[2]
PACKAGE = str(Path(olor_mm.__file__).parent)
WORKS, EXPLAINED, UNEXPLAINED, SILENT = 'works', 'explained', 'unexplained', 'silent'
# words that begin the naming of a right value or of what to do
REMEDY = re.compile(
    r'did you mean|known keys|\btake\b|\bgive\b|\bset\b|\bname\b|\bleave\b|e\.g\.|belongs into|usual values|swap|'
    r'\blower\b|\braise\b|one of|as in|from \d',
    re.I,
)

Path_ = tuple[str, ...]
LEVELS = ('paramwise_cfg', 'rollback')
OPTIMIZER = ('optimizer',)
FLAGS = ('foreach', 'fused')  # not both at once


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


@cache
def weights_file() -> str:
    """The backbone's weights, as a checkpoint; kept until the process ends."""
    folder = tempfile.TemporaryDirectory(prefix='bad_configs')
    weights_file.folder = folder
    torch.save(classifier().state_dict(), f'{folder.name}/weights.pth')
    return f'{folder.name}/weights.pth'


def is_number(value, low=-math.inf, high=math.inf) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high and abs(value) < 3.4e38
    )


def is_pair(value) -> bool:
    is_sequence = isinstance(value, (list, tuple)) and len(value) == 2
    return is_sequence and all(is_number(v, 0, 1) and v < 1 for v in value)


def is_bool(value) -> bool:
    return isinstance(value, bool)


def groups_of(wrapper) -> list[dict]:
    return wrapper.optimizer.param_groups


def level_of(wrapper, name: str) -> float:
    return next(group['rollback'] for group in groups_of(wrapper) if name in group['names'])


STEM, HEAD = 'backbone.conv1.weight', 'head.fc.weight'


def anchors(wrapper) -> dict[str, torch.Tensor]:
    pairs = [pair for group in groups_of(wrapper) for pair in zip(group['names'], group['params'])]
    return {
        n: wrapper.optimizer.state[p]['anchor']
        for n, p in pairs
        if wrapper.optimizer.state.get(p, {}).get('anchor') is not None
    }


def option(key: str) -> Callable:
    """Whether every group has the value, as far as custom_keys and multipliers leave it."""

    def holds(wrapper, value) -> bool:
        found = [group[key] for group in groups_of(wrapper)]
        return any(f == value or (isinstance(f, (list, tuple)) and list(f) == list(value)) for f in found)

    return holds


@dataclass(frozen=True)
class Key:
    """A key of the config: which values are right, some of these, and whether one holds after the first step."""

    fits: Callable
    good: tuple
    holds: Callable = lambda wrapper, value: True


def is_prefixes(value) -> bool:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(v in ('backbone', 'head', 'backbone.layer1') for v in value)
    )


def is_dtype(value) -> bool:
    return value is None or (
        isinstance(value, str)
        and value.removeprefix('torch.') in ('bfloat16', 'float16', 'float32', 'float64', 'half', 'float', 'double')
    )


RATE = Key(lambda v: is_number(v, 0), (0.0, 0.1, 1, 10.0))
RATE_OR_NONE = Key(lambda v: v is None or is_number(v, 0), (0.0, 0.1, 1, None))
SWITCH = Key(is_bool, (True, False))
FLAG = Key(lambda v: v is None or is_bool(v), (True, False, None))
LEVEL_KEYS: dict[Path_, Key] = {
    (*LEVELS, 'max_level'): Key(lambda v: is_number(v, 0, 1), (0.05, 1, 1e-6), lambda w, v: level_of(w, STEM) == v),
    (*LEVELS, 'min_level'): Key(
        lambda v: is_number(v, 0, 0.01), (0.0, 0.001, 0.01), lambda w, v: v == 0 or level_of(w, HEAD) == v
    ),
    (*LEVELS, 'power'): Key(
        lambda v: is_number(v, 0) or (isinstance(v, float) and 0 <= v < math.inf),
        (0, 0.5, 2, 1e6),
        lambda w, v: v or level_of(w, HEAD) == level_of(w, STEM),
    ),
    (*LEVELS, 'pretrained'): Key(
        lambda v: v in ('auto', 'all') if isinstance(v, str) else is_prefixes(v),
        ('auto', 'all', ['backbone'], ('backbone.layer1',)),
        lambda w, v: isinstance(v, str) or all(n.startswith(tuple(f'{p}.' for p in v)) for n in anchors(w)),
    ),
    (*LEVELS, 'layer_index'): Key(
        lambda v: v in ('block', 'tensor')
        if isinstance(v, str)
        else isinstance(v, dict)
        and set(v) <= {'backbone', 'head'}
        and all(is_number(i, 0, 9) and int(i) == i for i in v.values()),
        ('block', 'tensor', {'backbone': 3}, {}),
        lambda w, v: v != 'tensor' or len({g['rollback'] for g in groups_of(w)}) > 20,
    ),
    (*LEVELS, 'coupling'): Key(lambda v: v in ('lr', 'constant'), ('lr', 'constant'), option('rollback_coupling')),
    (*LEVELS, 'rule'): Key(
        lambda v: v in ('olor', 'l2sp', 'l2sp_decoupled', 'spd'), ('olor', 'l2sp', 'spd'), option('rollback_rule')
    ),
    (*LEVELS, 'new_level'): Key(lambda v: is_number(v, 0, 0), (0, 0.0)),
    ('paramwise_cfg', 'layer_decay_rate'): Key(
        lambda v: is_number(v, 0, 1) and v > 0,
        (0.75, 1, 1.0),
        lambda w, v: (max(g['lr'] for g in groups_of(w)) > min(g['lr'] for g in groups_of(w))) == (v < 1),
    ),
    ('paramwise_cfg', 'bypass_duplicate'): SWITCH,
    **{
        ('paramwise_cfg', f'{what}_mult'): RATE_OR_NONE
        for what in ('bias_lr', 'bias_decay', 'norm_decay', 'flat_decay', 'dwconv_decay', 'dcn_offset_lr')
    },
    ('paramwise_cfg', 'custom_keys', 'head', 'lr_mult'): RATE,
    ('paramwise_cfg', 'custom_keys', 'head', 'decay_mult'): RATE,
    ('paramwise_cfg', 'custom_keys', 'head', 'rollback'): Key(
        lambda v: is_number(v, 0, 1), (0.5, 0, 1), lambda w, v: level_of(w, HEAD) == v
    ),
    ('paramwise_cfg', 'custom_keys', 'backbone.layer1', 'lr'): Key(
        lambda v: is_number(v, 0), (0.01, 0.0), lambda w, v: any(g['lr'] == v for g in groups_of(w))
    ),
    ('paramwise_cfg', 'custom_keys'): Key(lambda v: v == {}, ({},)),
    ('paramwise_cfg', 'rollback'): Key(lambda v: v == {}, ({},)),
    ('paramwise_cfg',): Key(lambda v: v in (None, {}) and v is not False, (None, {})),
    ('accumulative_counts',): Key(lambda v: is_number(v, 1) and isinstance(v, int), (1, 4)),
    ('clip_grad',): Key(lambda v: v is None, (None, dict(max_norm=1.0), dict(type='value', clip_value=0.1))),
    ('clip_grad', 'max_norm'): Key(lambda v: is_number(v, 0) or v == math.inf, (1.0, 35)),
    ('type',): Key(lambda v: v == 'OptimWrapper', ('OptimWrapper',)),
}
ANCHOR_KEYS: dict[Path_, Key] = {
    (*OPTIMIZER, 'anchor_dtype'): Key(
        is_dtype,
        ('bfloat16', 'float32', 'torch.float16', None),
        lambda w, v: v is None
        or all(
            str(a.dtype).endswith({'half': 'float16', 'float': 'float32', 'double': 'float64'}.get(v, v))
            for a in anchors(w).values()
        ),
    ),
    (*OPTIMIZER, 'anchor_device'): Key(lambda v: v in ('cpu', None), ('cpu', None)),
    (*OPTIMIZER, 'anchor_file'): Key(
        lambda v: v is None or v == [] or v == (),
        (None, 'WEIGHTS', ['WEIGHTS']),
        lambda w, v: not v or bool(w.optimizer._files.entries),
    ),
}
NUMBER = Key(lambda v: is_number(v, 0), (0.0, 1e-3))
LR = Key(lambda v: is_number(v, 0), (1e-3, 0.1, 1), option('lr'))
ADAM = dict(
    lr=LR,
    betas=Key(is_pair, ((0.9, 0.99), [0.5, 0.5], (0.0, 0.5)), option('betas')),
    eps=Key(lambda v: is_number(v, 0), (1e-8, 1e-3), option('eps')),
    weight_decay=Key(lambda v: is_number(v, 0), (0.0, 0.05, 1), option('weight_decay')),
    amsgrad=Key(is_bool, (True, False), option('amsgrad')),
    maximize=Key(is_bool, (True, False), option('maximize')),
    foreach=FLAG,
    fused=FLAG,
    capturable=Key(lambda v: v is False, (False,)),
    differentiable=Key(lambda v: v is False, (False,)),
)
OPTIMIZERS: dict[str, dict[str, Key]] = {
    'AdamWOLOR': ADAM,
    'AdamW': ADAM,
    'SGDOLOR': dict(
        lr=LR,
        momentum=Key(lambda v: is_number(v, 0), (0.9, 0), option('momentum')),
        dampening=Key(lambda v: is_number(v), (0.0, 0.1), option('dampening')),
        weight_decay=ADAM['weight_decay'],
        nesterov=Key(lambda v: v is False, (False,), option('nesterov')),
        maximize=ADAM['maximize'],
        foreach=FLAG,
        fused=FLAG,
    ),
    'NAdam': dict(
        lr=LR, betas=ADAM['betas'], eps=ADAM['eps'], weight_decay=ADAM['weight_decay'], momentum_decay=NUMBER
    ),
    'Lion': dict(
        lr=Key(lambda v: is_number(v, 0) and v > 0, (1e-4,)),
        betas=Key(lambda v: is_pair(v), ((0.9, 0.99),)),
        weight_decay=ADAM['weight_decay'],
    ),
}


def bases() -> dict[str, dict]:
    """Right configs of ``optim_wrapper`` that are changed: the fragments, and other optimizers."""
    fragments = {
        path.stem: Config.fromfile(path).finetune_optim_wrapper.to_dict()
        for path in sorted((ROOT / 'configs/_base_/finetune').glob('*.py'))
        if 'constructor' in path.read_text()
    }
    rollback = Config.fromfile(ROOT / 'configs/_base_/rollback.py').olor_optim_wrapper.to_dict()
    others = {
        name: dict(
            type='OptimWrapper',
            constructor='OLOROptimWrapperConstructor',
            optimizer=dict(type=name, lr=1e-2, weight_decay=0.01),
            paramwise_cfg=dict(rollback=dict(max_level=0.01)),
        )
        for name in ('AdamW', 'SGDOLOR', 'NAdam')
    }
    lion = dict(others['AdamW'], optimizer=dict(type='OLOR', base=dict(type='Lion', lr=1e-4, weight_decay=0.01)))
    return {'rollback': rollback, **fragments, **others, 'Lion': lion}


BASES = bases()
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1, -1e-3, 0, 2, 1e300, 10**400, -0.0, 1.5]),
    st.sampled_from(
        [
            '',
            'auto',
            'none',
            'None',
            'False',
            'true',
            '0.01',
            '1e-3',
            'lr',
            'float',
            'int32',
            'cuda:7',
            'backbone',
            '/',
            'no/such/file.pth',
            ROOT,
        ]
    ),
    st.text(st.characters(codec='ascii', exclude_categories=['C']), max_size=6),
    st.integers(-5, 5),
    st.floats(),
    st.lists(st.one_of(st.integers(-2, 2), st.floats(-1, 2), st.text('abc', max_size=2), st.none()), max_size=3),
    st.dictionaries(st.text('abc', max_size=2), st.integers(0, 2), max_size=2),
    st.tuples(st.floats(0, 1), st.floats(0, 2)),
).map(lambda value: str(value) if isinstance(value, Path) else value)


@dataclass(frozen=True)
class Case:
    """A base with values put in; what is wrong on purpose, as (wrong key, right key or None), is in ``typo``."""

    base: str
    changes: tuple[tuple[Path_, object], ...]
    typo: tuple[str, str | None] | None = None
    good: bool = False

    def __str__(self) -> str:
        return f'{self.base}: ' + ', '.join(f'{".".join(path)}={value!r}' for path, value in self.changes)


def keys_of(base: str) -> dict[Path_, Key]:
    optimizer = BASES[base]['optimizer']
    inner = ('optimizer', 'base') if 'base' in optimizer else OPTIMIZER
    name = optimizer.get('base', optimizer)['type'].rpartition('.')[2]
    own = {(*inner, key): what for key, what in OPTIMIZERS[name].items()}
    return {**LEVEL_KEYS, **ANCHOR_KEYS, **own}


def edited(key: str, others: set[str]) -> st.SearchStrategy[str]:
    """Keys one edit away."""
    letters = 'abcdefghijklmnopqrstuvwxyz_'
    places = range(len(key))
    edits = [key[:i] + key[i + 1 :] for i in places] + [key[:i] + key[i] + key[i:] for i in places]
    edits += [key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in range(len(key) - 1)]
    edits += [key[:i] + c + key[i + 1 :] for i in places for c in letters[::5]]
    return st.sampled_from(sorted({e for e in edits if e and e != key and e not in others}))


# right values that do not go with the rest of a base
CONTRADICTIONS = [(base, key) for base in ('l2sp', 'l2sp_decoupled', 'spd') for key in ('coupling', 'rule', 'power')]
CONTRADICTIONS += [('layer_decay', 'min_level'), ('layer_decay', 'lr')]
NEVER_ZERO = ('Lion',)  # takes no learning rate of 0


@st.composite
def cases(draw) -> Case:
    base = draw(st.sampled_from(list(BASES)))
    keys = keys_of(base)
    kind = draw(
        st.sampled_from(
            ['junk', 'junk', 'good', 'good', 'goods', 'typo', 'typo', 'pair', 'misplaced', 'type', 'type typo']
        )
    )
    path = draw(st.sampled_from(list(keys)))
    right = draw(st.sampled_from(keys[path].good))
    if kind == 'good' and (base, path[-1]) not in CONTRADICTIONS:
        return Case(base, ((path, right),), good=not (base in NEVER_ZERO and 'lr' in path[-1] and right == 0))
    if kind == 'goods':  # of one optimizer, so that no two exclude each other
        paths = draw(
            st.lists(
                st.sampled_from(
                    [p for p in keys if p[-2:-1] == ('optimizer',) and p[-1] not in (*FLAGS, 'anchor_file')]
                ),
                min_size=2,
                unique=True,
            )
        )
        return Case(base, tuple((p, draw(st.sampled_from(keys[p].good))) for p in paths), good=True)
    if kind == 'typo':
        names = {p[i] for p in keys for i in range(len(p))} | {
            'momentum',
            'optimizer',
            'base',
            'type',
            'head',
            'wd_mult',
            '_delete',
        }
        wrong = draw(edited(path[-1], names))
        return Case(base, (((*path[:-1], wrong), right),), typo=(wrong, path[-1]))
    if kind == 'pair':
        other = draw(st.sampled_from([p for p in keys if p[: len(path)] != path and path[: len(p)] != p]))
        values = [draw(st.one_of(junk, st.sampled_from(keys[p].good))) for p in (path, other)]
        return Case(base, tuple(zip((path, other), values)))
    if kind == 'misplaced':
        places = {p[:-1] for p in keys if 'custom_keys' not in p} | {('optimizer',)}
        if path in ANCHOR_KEYS:
            places -= {('optimizer', 'base')}  # the whole is one optimizer
        elsewhere = [p for p in sorted(places) if (*p, path[-1]) not in keys and p != path[:-1]]
        place = draw(st.sampled_from(elsewhere))
        return Case(base, (((*place, path[-1]), right),), typo=(path[-1], None))
    if kind == 'type':
        where = draw(st.sampled_from([('type',), ('optimizer', 'type'), ('optimizer',), ('optimizer', 'base')]))
        return Case(base, ((where, draw(junk)),), typo=(where[-1], None))
    if kind == 'type typo':
        name = draw(st.sampled_from(['AdamWOLOR', 'SGDOLOR', 'NAdamOLOR', 'AdamOLOR', 'RMSpropOLOR', 'OptimWrapper']))
        wrong = draw(edited(name, {'Adam', 'AdamOLOR', 'AdamWOLOR', 'SGDOLOR', 'NAdamOLOR', 'RAdamOLOR'}))
        where = ('type',) if name == 'OptimWrapper' else ('optimizer', 'type')
        return Case(base, ((where, wrong),), typo=(where[-1], name))
    return Case(base, ((path, draw(junk)),))


def changed(case: Case) -> dict:
    cfg = copy.deepcopy(BASES[case.base])
    for path, value in case.changes:
        section = cfg
        for key in path[:-1]:
            if not isinstance(section.get(key), dict):
                section[key] = {}
            section = section[key]
        section[path[-1]] = with_weights(copy.deepcopy(value))
    return cfg


def with_weights(value):
    if value == 'WEIGHTS':
        return weights_file()
    return [weights_file()] if value == ['WEIGHTS'] else value


class Warnings(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record) -> None:
        self.said.append(record.getMessage())


@contextlib.contextmanager
def log() -> Iterator[Warnings]:
    logger = MMLogger.get_current_instance()
    handler, others = Warnings(), logger.handlers[:]
    logger.handlers[:] = [handler]
    try:
        yield handler
    finally:
        logger.handlers[:] = others


def run_config(cfg: dict, moment: list[str]):
    """Build the optimizer, load weights, and make steps until one was one of the optimizer."""
    model = copy.deepcopy(classifier())
    moment.append('build')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        wrapper = build_optim_wrapper(model, cfg)
    model.load_state_dict({k: v for k, v in torch.load(weights_file()).items() if 'head' not in k}, strict=False)
    wrapper.initialize_count_status(model, 0, 100)
    before = model.head.fc.weight.clone()
    for _ in range(wrapper._accumulative_counts):
        moment.append('start')
        with wrapper.optim_context(model):
            moment.append('step')
            loss = model(torch.ones(2, 3, 8, 8), mode='tensor')[0].square().sum()
        wrapper.update_params(loss)
    moment.append('stepped')
    if not all(p.isfinite().all() for p in model.parameters()):
        raise FloatingPointError('weights are not finite after the first step')
    return wrapper, not torch.equal(before, model.head.fc.weight)


def shown(value) -> list[str]:
    """How a message may show a value: itself, or the part of it that is wrong."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    parts = [repr(part) for part in (*inner, *(value if isinstance(value, dict) else ()))]
    return [repr(value), *parts]


def unexplained(error: BaseException, changes, right: str | None, late: bool) -> str | None:
    """What an error lacks that is to be an explanation; None if nothing."""
    message = str(error.args[0]) if error.args else ''
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = f'{type(error).__name__} from {Path(frame.filename).name}:{frame.lineno}: {message}'
    if late:
        return f'came with the step: {said}'
    if not isinstance(error, (ValueError, TypeError, KeyError)) or not frame.filename.startswith(PACKAGE):
        return said
    named = [
        (p[-1], v)
        for p, v in changes
        if re.search(rf'\b{re.escape(p[-1])}\b', message) and any(s in message for s in shown(v))
    ]
    if not named:
        return f'names no key and value: {said}'
    rest = message
    for _, value in named:
        rest = rest.replace(repr(value), '')
    if not REMEDY.search(rest):
        return f'has no remedy: {said}'
    near = re.search(r"did you mean '(\S+)'", message)
    if right is not None and not (
        near and (near[1] == right or one_edit_apart(near[1], named[0][1] if named[0][0] == 'type' else named[0][0]))
    ):
        return f'does not name {right!r}: {said}'
    return None


def one_edit_apart(a: str, b: str) -> bool:
    short, long = sorted((a, b), key=len)
    return any(
        short[:i] == long[:i]
        and (
            short[i:] == long[i + 1 :]
            or short[i + 1 :] == long[i + 1 :]
            or (sorted(short[i : i + 2]) == sorted(long[i : i + 2]) and short[i + 2 :] == long[i + 2 :])
        )
        for i in range(len(long))
    )


def judge(case: Case) -> tuple[str, str]:
    cfg, moment, keys = changed(case), [], keys_of(case.base)
    changes = [(path, with_weights(value)) for path, value in case.changes]
    with log() as warnings:
        try:
            wrapper, moved = run_config(cfg, moment)
        except Exception as error:
            lacks = unexplained(error, changes, case.typo and case.typo[1], late=moment[-1] in ('step', 'stepped'))
            if case.good and lacks is None:
                lacks = f'a right value was refused: {error}'
            return (EXPLAINED, str(error)) if lacks is None else (UNEXPLAINED, lacks)
    told = [w for w in warnings.said if any(p[-1] in w and any(s in w for s in shown(v)) for p, v in changes)]
    if told:
        return WORKS, f'warned: {told[0]}'
    if case.typo is not None:
        return SILENT, 'a wrong key or name was taken'
    for path, value in changes:
        if path not in keys:
            continue
        if (case.base, path[-1]) in CONTRADICTIONS:
            continue
        rule = BASES[case.base]['paramwise_cfg'].get('rollback', {}).get('rule', 'olor')
        if rule != 'olor' and path[-1] in ('max_level', 'rollback') and is_number(value, 0):
            continue  # those have no highest level
        right = value in keys[path].good or with_weights(keys[path].good[-1]) == value or case.good
        if not right and not keys[path].fits(value):
            return SILENT, f'{path[-1]}={value!r} was taken'
        single = len(changes) == 1 or all(len(p) < 2 or p[:2] != LEVELS for p, _ in changes)
        if single and not keys[path].holds(wrapper, value):
            return SILENT, f'{path[-1]}={value!r} does not hold'
    return WORKS, '' if moved else 'head not moved'


def study(strategy, judge: Callable, number: int, seed: int) -> Iterator[tuple[object, str, str]]:
    """Draw cases and judge them."""
    drawn = {}

    @seeded(seed)
    @settings(
        max_examples=max(1, 2 * number),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(case) -> None:
        drawn[str(case)] = case

    if number:
        draw()
    for case in list(drawn.values())[:number]:  # some are drawn twice
        yield case, *judge(case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--configs', type=int, default=2000)
    parser.add_argument('--command-lines', type=int, default=400)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/reliability')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT / 'tools'))
    import bad_command_lines as lines

    studies = [
        ('bad_configs', cases(), judge, args.configs),
        ('command_lines', lines.lines(), lines.judge, args.command_lines),
    ]
    for name, strategy, judged, number in studies:
        outcomes = Counter()
        with open(args.out / f'{name}.jsonl', 'a') as file:
            for case, outcome, detail in study(strategy, judged, number, args.seed):
                row = dict(study=name, case=str(case), outcome=outcome, ok=outcome in (WORKS, EXPLAINED), detail=detail)
                file.write(json.dumps(row) + '\n')
                outcomes[outcome] += 1
        print(f'{name}: {sum(outcomes.values())} cases, {dict(outcomes)}')


if __name__ == '__main__':
    main()
