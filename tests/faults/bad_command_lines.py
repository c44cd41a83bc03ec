"""Generated command lines of the tools, right and wrong, run in this process.

A right one works. A wrong one ends before any work, with a message that names the argument and its value.
"""

import contextlib
import io
import runpy
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from hypothesis import strategies as st
from jobs import ROOT
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, DefaultScope

WORKS, EXPLAINED, UNEXPLAINED, SILENT = 'works', 'explained', 'unexplained', 'silent'
TRAIN, TEST, PRINT = 'train.py', 'test.py', 'analysis_tools/print_rollback.py'
CONVERTERS = ('wise_ft', 'restore_pretrained', 'torchvision_mobilenet_v2')
WISE, RESTORE, MOBILENET = (f'model_converters/{name}.py' for name in CONVERTERS)
TINY = """
_base_ = [{root!r} + '/configs/_base_/rollback.py']
default_scope = 'mmpretrain'
backbone = dict(type='ResNet_CIFAR', depth=18, stem_channels=4, base_channels=4)
init_cfg = dict(type='Pretrained', checkpoint={folder!r} + '/whole.pth', prefix='backbone.')
model = dict(type='ImageClassifier', backbone=dict(init_cfg=init_cfg, **backbone), neck=dict(type='GlobalAveragePooling'),
             head=dict(type='LinearClsHead', num_classes=2, in_channels=32, topk=(1,)))
data_preprocessor = dict(num_classes=2)
dataset = dict(type='CustomDataset', data_root={folder!r} + '/images',
               pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dataset)
val_dataloader = test_dataloader = train_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
val_cfg = test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=1)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=1, by_epoch=True, convert_to_iter_based=True)]
visualizer = dict(type='UniversalVisualizer')
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1),
                     visualization=dict(type='VisualizationHook', enable=False))
custom_hooks = [dict(type='ResumableRandomnessHook')]
log_level = 'WARNING'
experiment_name = __import__('uuid').uuid4().hex  # MMEngine's own is the same for all runs of a second
load_from = None
optim_wrapper = dict(**_base_.olor_optim_wrapper)
"""
CONFIGS = ('no_python.py', 'no_base.py', 'raises.py', 'text.txt', 'image.png', 'images', 'nowhere')
CHECKPOINTS = ('empty.pth', 'text.txt', 'list.pth', 'no_tensors.pth', 'cut.pth', 'image.png', 'images', 'nowhere')
# a command line that works, made of files; wrong values of options; what is a wrong file in each place
TOOLS = {
    TRAIN: (('config.py', '--work-dir', 'new/run'), dict(resume=('nowhere', 'folder/none.pth')), (CONFIGS,)),
    TEST: (
        ('config.py', 'whole.pth', '--work-dir', 'new/test'),
        {'out': ('a.txt', '/nowhere/a.pkl'), 'show-dir': ('text.txt/sub',), 'wait-time': ('-1', 'nan')},
        (CONFIGS, CHECKPOINTS),
    ),
    PRINT: (
        ('config.py',),
        {'images': ('0', '-1'), 'csv': ('/nowhere/a.csv',), 'plot': ('a.doc',), 'load-from': ('cut.pth', 'images')},
        (CONFIGS,),
    ),
    WISE: (
        ('whole.pth', 'whole.pth', 'new/wise.pth'),
        dict(alpha=('-0.1', '1.5', 'nan'), prefix=('no.such.',)),
        (CHECKPOINTS, CHECKPOINTS),
    ),
    RESTORE: (('trained.pth', 'whole.pth', 'new/restored.pth'), dict(prefix=('no.such.',)), (CHECKPOINTS, CHECKPOINTS)),
    MOBILENET: (('mobilenet.pth', 'new/mobilenet'), {}, (CHECKPOINTS,)),
}
FLAGS = ('--trust-checkpoints', '--cfg-options', '--work-dir', '--resume', '--prefix', '--alpha')
ROLLBACK, OPTIMIZER = 'optim_wrapper.paramwise_cfg.rollback', 'optim_wrapper.optimizer'
SETTINGS = {  # of ours: right and wrong values
    f'{ROLLBACK}.max_level': (('0.05', '1'), ('-0.1', '1.5', 'nan', 'abc')),
    f'{ROLLBACK}.min_level': (('0', '0.001'), ('-1', 'inf', '[1,2]')),
    f'{ROLLBACK}.power': (('0.5', '2'), ('-1', 'nan', 'abc')),
    f'{ROLLBACK}.pretrained': (('auto', 'all', '[backbone]'), ('bakbone', '0', '[haed]')),
    f'{ROLLBACK}.layer_index': (('block', 'tensor'), ('blok', '3')),
    f'{ROLLBACK}.coupling': (('lr', 'constant'), ('l', '1')),
    f'{ROLLBACK}.rule': (('olor', 'l2sp'), ('olr', '1')),
    f'{OPTIMIZER}.anchor_dtype': (('bfloat16', 'None'), ('int8', 'floaty')),
    f'{OPTIMIZER}.anchor_device': (('cpu', 'None'), ('nowhere', '-1')),
    f'{OPTIMIZER}.type': (('AdamWOLOR', 'olor_mm.AdamWOLOR'), ('AdamWOLR',)),
    'optim_wrapper.constructor': (('olor_mm.OLOROptimWrapperConstructor',), ('DefaultOptimWrapperConstructor', 'OLR')),
}


@cache
def files() -> dict[str, str]:
    """Files of every kind, right and wrong, by name; kept until the process ends."""
    files.folder = tempfile.TemporaryDirectory(prefix='command_lines')
    folder = Path(files.folder.name)
    for name in ('a/0', 'a/1', 'b/0', 'b/1'):
        (folder / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(len(name)).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{name}.png'), image)
    shutil.copy(folder / 'images/a/0.png', folder / 'image.png')
    texts = {'no_python.py': 'model = dict(', 'no_base.py': "_base_ = 'nowhere.py'", 'raises.py': '1 / 0'}
    texts |= {'text.txt': 'text', 'empty.pth': '', 'config.py': TINY.format(root=str(ROOT), folder=str(folder))}
    for name, text in texts.items():
        (folder / name).write_text(text)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        weights = MODELS.build(Config.fromfile(folder / 'config.py').model).state_dict()
    statistics = {name: value for name, value in weights.items() if 'running_' in name}
    contents = dict(list=[1, 2], no_tensors=dict(a=1), other=dict(other=torch.ones(2)), whole=weights)
    contents['mobilenet'] = {'features.0.0.weight': torch.ones(2)}
    contents['part'] = {name: value for name, value in weights.items() if 'conv1' in name}
    contents['trained'] = dict(state_dict=weights, optimizer=dict(pretrained_statistics=statistics))
    for name, content in contents.items():
        torch.save(content, folder / f'{name}.pth')
    (folder / 'cut.pth').write_bytes((folder / 'whole.pth').read_bytes()[:5000])
    paths = {path.name: str(path) for path in folder.iterdir()}
    return {**paths, 'folder': str(folder), 'nowhere': str(folder / 'nowhere.pth'), 'new': str(folder / 'new')}


def path_of(argument: str) -> str:
    """An argument with the path of a file in the place of its name."""
    name, slash, rest = argument.partition('/')
    return files().get(name, name) + slash + rest


@dataclass(frozen=True)
class Line:
    """A command line; of a wrong one, the argument that is wrong and its value."""

    tool: str
    argv: tuple[str, ...]
    key: str = ''
    value: str = ''

    def __str__(self) -> str:
        return ' '.join([self.tool, *self.argv]).replace(files()['folder'], 'FOLDER')


def misspelled(word: str) -> st.SearchStrategy[str]:
    """The word with a letter doubled, or two swapped."""
    words = {word[:i] + word[i] + word[i:] for i in range(len(word))}
    words |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
    return st.sampled_from(sorted(words - {word}))


@st.composite
def lines(draw) -> Line:
    """Right and wrong command lines."""
    tool = draw(st.sampled_from([TRAIN, TRAIN, *TOOLS]))
    start, wrong, places = TOOLS[tool]
    argv = [path_of(argument) for argument in start]
    kinds = ['value', 'key', 'section', 'right'] if tool in (TRAIN, PRINT) else []
    kind = draw(st.sampled_from(['start', 'flag', 'option', 'place', *kinds, *kinds]))
    if kind == 'flag':
        flag = '--' + draw(misspelled(draw(st.sampled_from(FLAGS))[2:]))
        return Line(tool, (*argv, flag), flag, flag)
    if kind == 'option' and wrong:
        name = draw(st.sampled_from(list(wrong)))
        value = path_of(draw(st.sampled_from(wrong[name])))
        return Line(tool, (*argv, f'--{name}={value}'), value if '/' in value else name, value)  # of a file, its path
    if kind == 'place':
        place = draw(st.integers(0, len(places) - 1))
        argv[place] = path_of(draw(st.sampled_from(places[place])))
        return Line(tool, tuple(argv), argv[place], argv[place])
    if kind not in kinds:
        return Line(tool, tuple(argv))
    key = draw(st.sampled_from(list(SETTINGS)))
    value = draw(st.sampled_from(SETTINGS[key][kind == 'value']))
    root, _, rest = key.partition('.')
    parent, _, last = key.rpartition('.')
    if kind == 'section':
        key = f'{draw(misspelled(root))}.{rest}'
    elif kind == 'key':
        key = f'{ROLLBACK if parent == "optim_wrapper" else parent}.{draw(misspelled(last))}'
    option = (*argv, '--cfg-options', f'{key}={value}')
    if kind == 'key' and ROLLBACK not in key:
        value = ''  # torch and MMEngine name the key alone
    return Line(tool, option) if kind == 'right' else Line(tool, option, key, value)


def run(tool: str) -> None:
    """Run the script of a tool in this process."""
    runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')


def call(tool: str, argv: tuple[str, ...]) -> tuple[int, str, Exception | None]:
    """Exit code, what was said on stderr, and an exception that got out."""
    shutil.rmtree(files()['new'], ignore_errors=True)
    Path(files()['new']).mkdir()
    said, load = io.StringIO(), torch.load
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said)
    with mock.patch.object(sys, 'argv', [tool, *argv]), mock.patch.dict('os.environ'), quiet[0], quiet[1]:
        try:
            run(tool)
        except SystemExit as end:
            text = end.code if isinstance(end.code, str) else ''
            return int(end.code != 0 and end.code is not None), said.getvalue() + text, None
        except Exception as error:
            return 1, said.getvalue(), error
        finally:
            torch.load = load
    return 0, said.getvalue(), None


def judge(line: Line) -> tuple[str, str]:
    """How a command line ended, and what was said."""
    code, said, error = call(line.tool, line.argv)
    if error is not None or 'Traceback' in said:
        return UNEXPLAINED, f'{error!r} {said}'
    if not line.key:
        return (UNEXPLAINED, f'a right command line was refused: {said}') if code else (WORKS, '')
    if not code or list(Path(files()['new']).rglob('*.pth')):
        return SILENT, f'a wrong argument was taken: {said}'
    message = said.rpartition('error: ')[2]  # not the usage, which names all options
    value = str(DictAction._parse_iterable(line.value)).strip("[]'")
    is_named = line.key.rpartition('.')[2] in message and value in message
    return (EXPLAINED, message) if is_named else (UNEXPLAINED, f'does not name argument and value: {message}')
