"""Generated command lines of the tools, good and bad, run in this process; see bad_configs.py."""

import contextlib
import importlib
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from bad_configs import (
    EXPLAINED,
    LEVEL_KEYS,
    OPTIMIZERS,
    REMEDY,
    ROOT,
    SILENT,
    UNEXPLAINED,
    WORKS,
    Key,
    edited,
    is_bool,
    is_number,
    one_edit_apart,
    weights_file,
)
from hypothesis import strategies as st
from mmengine.config import DictAction

TINY = """
_base_ = [{root!r} + '/configs/_base_/rollback.py']
default_scope = 'mmpretrain'
backbone = dict(type='ResNet_CIFAR', depth=18, stem_channels=4, base_channels=4)
model = dict(
    type='ImageClassifier',
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint={weights!r}, prefix='backbone.'), **backbone),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=32, topk=(1,)))
data_preprocessor = dict(num_classes=2)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
                        dataset=dict(type='CustomDataset', data_root={images!r}, pipeline=pipeline))
val_dataloader = test_dataloader = train_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
val_cfg = test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=1)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=1, by_epoch=True, convert_to_iter_based=True)]
visualizer = dict(type='UniversalVisualizer')
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1),
                     visualization=dict(type='VisualizationHook', enable=False))
custom_hooks = [dict(type='ResumableRandomnessHook')]
randomness = dict(seed=0)
log_level = 'WARNING'
experiment_name = __import__('uuid').uuid4().hex  # MMEngine's holds for a second
load_from = None
optim_wrapper = dict(**_base_.olor_optim_wrapper)
"""


@cache
def files() -> dict[str, str]:
    """Files of every kind, right and wrong, by name; kept until the process ends."""
    files.folder = tempfile.TemporaryDirectory(prefix='command_lines')
    folder = Path(files.folder.name)
    for name in 'ab':
        (folder / 'images' / name).mkdir(parents=True)
        for i in range(2):
            image = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / 'images' / name / f'{i}.png'), image)
    cfg = TINY.format(root=str(ROOT), weights=weights_file(), images=str(folder / 'images'))
    found = dict(
        config=cfg, no_python='optim_wrapper = dict(', no_base="_base_ = 'nowhere.py'", raises='1 / 0', empty=''
    )
    for name, content in found.items():
        (folder / f'{name}.py').write_text(content)
    (folder / 'empty.pth').touch()
    (folder / 'text.pth').write_text('no weights')
    (folder / 'list.json').write_text('[1]')
    (folder / 'text.txt').write_text('text')
    torch.save([1, 2], folder / 'list.pth')
    torch.save(dict(state_dict=dict(other=torch.ones(2))), folder / 'other.pth')
    torch.save(dict(state_dict=dict(a=1)), folder / 'no_tensors.pth')
    whole = torch.load(weights_file())
    torch.save(dict(state_dict=whole, meta={}), folder / 'whole.pth')
    part = {name: value for name, value in whole.items() if 'conv1' in name}
    torch.save(dict(state_dict=part, meta={}), folder / 'part.pth')
    content = (folder / 'whole.pth').read_bytes()
    (folder / 'cut.pth').write_bytes(content[: len(content) // 2])
    shutil.copy(folder / 'images/a/0.png', folder / 'image.png')
    paths = {path.name: str(path) for path in folder.iterdir()}
    return {**paths, 'folder': str(folder), 'nowhere': str(folder / 'nowhere.pth'), 'new': str(folder / 'new')}


@dataclass(frozen=True)
class Line:
    """A command line, and what is on trial in it: the name of the argument, its value as typed, and the right name."""

    tool: str
    argv: tuple[str, ...]
    key: str
    value: str
    wrong: bool | None = None  # True: must not work; False: must
    typo: tuple[str, str] | None = None

    def __str__(self) -> str:
        argv = ' '.join(self.argv)
        for name, path in files().items():
            argv = argv.replace(path, name) if name != 'folder' else argv
        return f'{self.tool} {argv}'


def typed(value) -> str:
    return str(value).replace(' ', '') if not isinstance(value, str) else value


texts = st.one_of(
    st.sampled_from(
        [
            'nan',
            'inf',
            '-inf',
            '-1',
            '0',
            '1',
            '2',
            '0.5',
            '-0.5',
            '1e400',
            '1e30',
            'None',
            'True',
            'False',
            'abc',
            '',
            '[',
            '(1',
            '[1,2]',
            '(1,2',
            '{}',
            '[1,(2]',
            'a=b',
            '--',
            "'",
            '1,2',
            'auto',
            '/',
            '%',
            'é',
        ]
    ),
    st.text(st.characters(codec='ascii', categories=['L', 'N', 'P', 'S']), max_size=5),
    st.floats().map(repr),
    st.integers(-3, 1000).map(str),
)


def positive(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


ANY = Key(lambda v: True, (1,))
STOCK = {
    'train_cfg.max_epochs': Key(positive, (1,)),
    'train_cfg.val_interval': Key(lambda v: True, (1,)),
    'train_dataloader.batch_size': Key(lambda v: True, (2, 4)),
    'randomness.seed': Key(lambda v: True, (0, 7)),
    'model.backbone.depth': Key(lambda v: True, (18,)),
    'model.head.num_classes': Key(lambda v: True, (2,)),
    'model.backbone.type': Key(lambda v: True, ('ResNet_CIFAR',)),
    'train_dataloader.dataset.type': Key(lambda v: True, ('CustomDataset',)),
    'train_dataloader.sampler.shuffle': Key(lambda v: True, (True,)),
    'param_scheduler.0.T_max': Key(lambda v: True, (1,)),
    'default_scope': Key(lambda v: True, ('mmpretrain',)),
    'log_level': Key(lambda v: True, ('WARNING',)),
    'load_from': Key(lambda v: True, (None,)),
}


def every(value) -> bool:
    return value == -1 or positive(value)


CHECKPOINT = {
    f'default_hooks.checkpoint.{key}': what
    for key, what in dict(
        interval=Key(every, (1, -1)),
        max_keep_ckpts=Key(every, (1, -1)),
        by_epoch=Key(is_bool, (True,)),
        save_optimizer=Key(is_bool, (True, False)),
        save_param_scheduler=Key(is_bool, (True, False)),
        save_last=Key(is_bool, (True, False)),
        save_begin=Key(lambda v: is_number(v, 0) and isinstance(v, int), (0, 1)),
        filename_tmpl=Key(lambda v: v is None, ('a{}.pth', None)),
        rule=Key(lambda v: v is None, (None,)),
        published_keys=Key(lambda v: v is None or isinstance(v, (str, list)), (None,)),
    ).items()
}
TYPES = {
    'optim_wrapper.constructor': 'OLOROptimWrapperConstructor',
    'optim_wrapper.optimizer.type': 'AdamWOLOR',
    'optim_wrapper.type': 'OptimWrapper',
    'custom_hooks.0.type': 'ResumableRandomnessHook',
    'default_hooks.checkpoint.type': 'SafeCheckpointHook',
    'train_dataloader.dataset.type': 'CustomDataset',
    'model.type': 'ImageClassifier',
}
OURS = {
    'optim_wrapper.' + '.'.join(path): what
    for path, what in LEVEL_KEYS.items()
    if 'backbone.layer1' not in path and path != ('paramwise_cfg',)
}
OURS |= {f'optim_wrapper.optimizer.{key}': what for key, what in OPTIMIZERS['AdamWOLOR'].items()}
SETTINGS = {**OURS, **CHECKPOINT, **STOCK}
PTHS = ('empty.pth', 'text.pth', 'list.pth', 'no_tensors.pth', 'cut.pth', 'image.png', 'text.txt', 'nowhere', 'images')
CONFIGS = (
    'no_python.py',
    'no_base.py',
    'raises.py',
    'empty.py',
    'list.json',
    'text.txt',
    'image.png',
    'nowhere',
    'images',
)
TRAIN, TEST, PRINT = 'train.py', 'test.py', 'analysis_tools/print_rollback.py'
WISE, RESTORE, MOBILENET = (
    f'model_converters/{n}.py' for n in ('wise_ft', 'restore_pretrained', 'torchvision_mobilenet_v2')
)
EMBEDDED, COVERAGE = 'dataset_converters/embedded.py', 'analysis_tools/coverage.py'
FLAGS = {
    TRAIN: [
        '--resume',
        '--no-validate',
        '--cfg-options',
        '--trust-checkpoints',
        '--work-dir',
        '--launcher',
        '--auto-scale-lr',
        '--amp',
    ],
    TEST: ['--out', '--show-dir', '--wait-time', '--cfg-options', '--trust-checkpoints', '--work-dir', '--launcher'],
    PRINT: ['--load-from', '--images', '--parameters', '--csv', '--plot', '--cfg-options', '--trust-checkpoints'],
    WISE: ['--alpha', '--prefix', '--trust-checkpoints'],
    RESTORE: ['--prefix', '--trust-checkpoints'],
    MOBILENET: ['--trust-checkpoints'],
    EMBEDDED: ['--data-root'],
    COVERAGE: ['--match', '--work-dir', '--out', '--processes'],
}


def start_of(tool: str) -> list[str]:
    """A right command line."""
    f = files()
    return {
        TRAIN: [f['config.py'], '--work-dir', f['new'] + '/run'],
        TEST: [f['config.py'], f['whole.pth'], '--work-dir', f['new'] + '/test'],
        PRINT: [f['config.py']],
        WISE: [f['whole.pth'], f['whole.pth'], f['new'] + '/wise.pth'],
        RESTORE: [f['whole.pth'], f['other.pth'], f['new'] + '/restored.pth'],
        MOBILENET: [f['whole.pth'], f['new'] + '/mobilenet'],
        EMBEDDED: ['--data-root', f['new'] + '/data'],
        COVERAGE: ['--match', 'no such config', '--work-dir', f['new'] + '/coverage', '--out', f['new']],
    }[tool]


@st.composite
def lines(draw) -> Line:
    tool = draw(
        st.sampled_from([TRAIN, TRAIN, TRAIN, TEST, PRINT, PRINT, WISE, RESTORE, MOBILENET, EMBEDDED, COVERAGE])
    )
    start, f = start_of(tool), files()
    kinds = ['flag typo', 'file'] + (
        ['option', 'option', 'option typo', 'type typo', 'root typo', 'variable']
        if tool in (TRAIN, PRINT)
        else ['value']
    )
    kind = draw(st.sampled_from(kinds + ['value']))
    if kind == 'flag typo':
        right = draw(st.sampled_from(FLAGS[tool]))
        wrong = '--' + draw(
            edited(right[2:], {flag[2:i] for flag in FLAGS[tool] for i in range(3, len(flag) + 1)}).filter(
                lambda w: not w.startswith('-')
            )
        )
        return Line(tool, (*start, wrong), wrong, wrong, True, (wrong, right))
    if kind == 'file' and tool not in (EMBEDDED, COVERAGE):
        place = draw(st.integers(0, {TRAIN: 0, PRINT: 0, MOBILENET: 0}.get(tool, 1)))
        is_config = place == 0 and tool in (TRAIN, TEST, PRINT)
        wrong = f[draw(st.sampled_from(CONFIGS if is_config else PTHS))]
        return Line(tool, (*start[:place], wrong, *start[place + 1 :]), wrong, wrong, True)
    if kind == 'option':
        key = draw(st.sampled_from([k for k in SETTINGS if tool == TRAIN or 'hooks' not in k]))
        if draw(st.booleans()):
            value = typed(draw(st.sampled_from([v for v in SETTINGS[key].good if not isinstance(v, dict)] or [None])))
            is_wrong = (
                None
                if key in ('optim_wrapper.type',) or value == 'None' or 'optimizer.f' in key or 'betas' in key
                else False
            )
        else:
            value, is_wrong = draw(texts), None
        return Line(tool, (*start, '--cfg-options', f'{key}={value}'), key, value, is_wrong)
    if kind == 'option typo':
        key = draw(
            st.sampled_from(
                [
                    k
                    for k in (*OURS, *CHECKPOINT, *list(STOCK)[:8])
                    if '.type' not in k and 'custom_keys' not in k and (tool == TRAIN or 'hooks' not in k)
                ]
            )
        )
        parent, _, last = key.rpartition('.')
        siblings = {k.rpartition('.')[2] for k in SETTINGS if k.rpartition('.')[0] == parent}
        wrong = draw(edited(last, siblings))
        value = typed(draw(st.sampled_from(SETTINGS[key].good)))
        return Line(
            tool,
            (*start, '--cfg-options', f'{parent}.{wrong}={value}'),
            f'{parent}.{wrong}',
            value,
            True,
            (wrong, last),
        )
    if kind == 'type typo':
        key = draw(
            st.sampled_from(
                list(TYPES) if tool == TRAIN else ['optim_wrapper.optimizer.type', 'optim_wrapper.type', 'model.type']
            )
        )
        wrong = draw(edited(TYPES[key], {'AdamOLOR', 'Adam'}))
        return Line(tool, (*start, '--cfg-options', f'{key}={wrong}'), key, wrong, True, (wrong, TYPES[key]))
    if kind == 'root typo':
        right = draw(
            st.sampled_from(
                ['optim_wrapper', 'train_cfg', 'model', 'default_hooks', 'randomness', 'load_from', 'custom_hooks']
            )
        )
        wrong = draw(edited(right, {right}))
        key = f'{wrong}.lr'
        return Line(tool, (*start, '--cfg-options', f'{key}=1'), key, '1', True, (wrong, right))
    if kind == 'variable':
        key, right = draw(
            st.sampled_from(
                [
                    ('rollback.max_level', 'optim_wrapper.paramwise_cfg.rollback.max_level'),
                    ('olor_optim_wrapper.optimizer.lr', 'optim_wrapper.optimizer.lr'),
                ]
            )
        )
        return Line(tool, (*start, '--cfg-options', f'{key}=0.02'), key, '0.02', True)
    value = draw(texts)
    flag = draw(st.sampled_from([flag for flag in FLAGS[tool] if flag != '--match']))
    if flag in ('--no-validate', '--trust-checkpoints', '--parameters', '--amp', '--auto-scale-lr'):
        return Line(tool, (*start, f'{flag}={value}'), flag, value, True)
    if flag in ('--work-dir', '--out', '--csv', '--plot', '--show-dir', '--data-root'):
        value = f[draw(st.sampled_from(['text.txt', 'image.png', 'empty.pth']))] + draw(
            st.sampled_from(['', '/sub', '/sub.pkl', '/sub.png'])
        )
        return Line(
            tool,
            (*start, f'{flag}={value}'),
            flag,
            value,
            None if '/sub' not in value and flag in ('--csv', '--plot', '--out') else True,
        )
    return Line(tool, (*start, f'{flag}={value}'), flag, value)


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        yield said


@cache
def main_of(tool: str):
    path = sys.path[:]
    spec = importlib.util.spec_from_file_location(f'tool_{Path(tool).stem}', ROOT / 'tools' / tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module.main


def call(tool: str, argv: tuple[str, ...]) -> tuple[int | None, str, BaseException | None]:
    """Exit code, what was said in the end, and an exception that got out."""
    shutil.rmtree(files()['new'], ignore_errors=True)
    Path(files()['new']).mkdir()
    loads = torch.load
    with mock.patch.object(sys, 'argv', [tool, *argv]), mock.patch.dict('os.environ'), quiet() as said:
        try:
            main_of(tool)()
        except SystemExit as end:
            text = end.code if isinstance(end.code, str) else ''
            return (end.code if isinstance(end.code, int) or end.code is None else 1), said.getvalue() + text, None
        except Exception as error:
            return 1, said.getvalue(), error
        finally:
            torch.load = loads
    return 0, said.getvalue(), None


def parsed(text: str):
    return DictAction._parse_iterable(text)


def judge(line: Line) -> tuple[str, str]:
    code, said, error = call(line.tool, line.argv)
    message = said.rpartition('usage:')[2] if 'usage:' in said else said
    if error is not None:
        import traceback

        place = traceback.extract_tb(error.__traceback__)[-1]
        return UNEXPLAINED, f'{type(error).__name__}: {error} ({place.filename}:{place.lineno})'
    names = (line.key, line.key.rpartition('.')[2], line.key.lstrip('-'))
    values = (line.value, repr(line.value), repr(line.value)[1:-1])
    with contextlib.suppress(AssertionError):
        values += (repr(parsed(line.value)),)
    values = [value for value in values if value]
    told = any(name in message for name in names) and any(value in message for value in values)
    if not code:
        if line.wrong and not told:
            return SILENT, 'a wrong argument was taken'
        key = SETTINGS.get(line.key)
        if key is not None and '=' not in line.value and line.key not in STOCK:
            with contextlib.suppress(AssertionError):
                value = parsed(line.value)
                good = [typed(v) for v in key.good]
                if line.value not in good and not key.fits(value) and not told:
                    return SILENT, f'{line.value!r} was taken'
        return WORKS, message[-300:] if told else ''
    if line.tool == COVERAGE and '--match' in message:  # with which it ends, once all else was taken
        return WORKS, ''
    if line.wrong is False:
        return UNEXPLAINED, f'a right value was refused: {message}'
    if 'Traceback' in message:
        return UNEXPLAINED, message
    if not told:
        return UNEXPLAINED, f'names no argument and value: {message}'
    if not REMEDY.search(message.replace(line.value, '') if len(line.value) > 3 else message):
        return UNEXPLAINED, f'has no remedy: {message}'
    if line.typo is not None:
        near = re.findall(r"[Dd]id you mean '([^']+)'", message)
        if not any(n == line.typo[1] or one_edit_apart(n, line.typo[0]) for n in near):
            return UNEXPLAINED, f'does not name {line.typo[1]!r}: {message}'
    return EXPLAINED, message[-500:]
