"""A model that starts from one of other classes: whose rows it gets, and which of them are pulled back."""

import copy
from types import SimpleNamespace

import pytest
import torch
from digits import config, pretrained_state, train
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import BaseLoop, Runner
from torch import nn

from olor_mm.engine import ClassTransferHook
from olor_mm.engine.hooks.class_transfer import stock_classes, training_classes
from olor_mm.inspect.rollback_table import examine

OLD = ['zebra', '7', '3', 'Lion']  # of the ten digits, 3 and 7
KEPT = {7: 1, 3: 2}  # digit to old row


@HOOKS.register_module(force=True)
class StartHook(Hook):
    """Notes the weights that training starts with."""

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        models = [runner.model, *(hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook))]
        runner.start, *runner.averaged = [copy.deepcopy(model.state_dict()) for model in models]


def old_checkpoint(tmp_path, data, meta: dict, prefix: str = '') -> str:
    """A classifier of the four old classes."""
    state = {name: value for name, value in pretrained_state(data).items() if not name.startswith('head')}
    torch.manual_seed(0)
    state.update({'head.fc.weight': torch.rand(4, 1280), 'head.fc.bias': torch.rand(4)})
    path = tmp_path / 'old.pth'
    torch.save(dict(meta=meta, state_dict={f'{prefix}{name}': value for name, value in state.items()}), path)
    return str(path)


def with_hook(work_dir, data, load_from, *hooks, **options):
    cfg = config(work_dir, data, iterations=1, load_from=load_from)
    cfg.model.backbone.init_cfg = None
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='ClassTransferHook', **options), dict(type='StartHook'), *hooks]
    return cfg


def assert_rows_came(weight, checkpoint):
    old = torch.load(checkpoint)['state_dict']
    old = next(value for name, value in old.items() if name.endswith('head.fc.weight'))
    assert all(torch.equal(weight[digit], old[row]) for digit, row in KEPT.items())
    assert not any(torch.equal(weight[digit], row) for digit in set(range(10)) - KEPT.keys() for row in old)


@pytest.mark.parametrize(
    'meta, prefix, options',
    [
        (dict(dataset_meta=dict(classes=OLD)), '', {}),
        (dict(CLASSES=OLD), 'module.', {}),
        ({}, '', dict(old_classes=OLD)),
        (dict(dataset_meta=dict(classes=['zebra', 'seven', '3', 'Lion'])), '', dict(aliases={'7': 'Seven'})),
    ],
    ids=['3.x', '2.x, in DataParallel', 'by option', 'by alias'],
)
def test_rows_come_by_name_and_are_pulled_while_new_ones_are_free(meta, prefix, options, data, tmp_path, log):
    checkpoint = old_checkpoint(tmp_path, data, meta, prefix)
    cfg = with_hook(tmp_path, data, checkpoint, **options)
    cfg.log_level = 'INFO'
    runner, _ = train(cfg)
    assert_rows_came(runner.start['head.fc.weight'], checkpoint)
    states = runner.optim_wrapper.optimizer.state
    for p in runner.model.head.fc.parameters():
        free = states[p]['anchor'].isnan()
        assert all(free[digit].all() == (digit not in KEPT) for digit in range(10))
    lines = [line for line in log if 'classes of head' in line]
    assert len(lines) == 1 and '2 of 10 classes of head ' in lines[0]
    assert all(str(digit) in lines[0].partition('new:')[2] for digit in set(range(10)) - KEPT.keys())


def test_the_average_of_the_weights_starts_with_the_same_rows(data, tmp_path):
    checkpoint = old_checkpoint(tmp_path, data, dict(CLASSES=OLD))
    runner, _ = train(with_hook(tmp_path, data, checkpoint, dict(type='EMAHook')))
    assert torch.equal(runner.averaged[0]['head.fc.weight'], runner.start['head.fc.weight'])


def test_a_resumed_run_goes_on_with_its_own_rows(data, tmp_path):
    checkpoint = old_checkpoint(tmp_path, data, dict(CLASSES=OLD))
    whole = with_hook(tmp_path / 'whole', data, checkpoint)
    whole.train_cfg.max_epochs = 2
    _, end = train(whole)
    half = with_hook(tmp_path / 'whole', data, str(tmp_path / 'whole/epoch_1.pth'))
    half.resume, half.train_cfg.max_epochs, half.work_dir = True, 2, str(tmp_path / 'half')
    half.experiment_name = 'resumed'
    runner, again = train(half)
    assert next(hook for hook in runner.hooks if isinstance(hook, ClassTransferHook)).report is None
    assert all(torch.equal(value, again['state_dict'][name]) for name, value in end['state_dict'].items())


class Loop(BaseLoop):
    """A loop that exists."""

    def run(self) -> None:
        raise NotImplementedError


class Model(nn.Module):
    def __init__(self, classes):
        super().__init__()
        from mmpretrain.models import LinearClsHead

        self.head = LinearClsHead(classes, 3)


def dataset(classes) -> BaseDataset:
    found = BaseDataset(lazy_init=True, metainfo=dict(classes=classes))
    found._fully_initialized = True
    found.get_cat_ids = lambda index: [0]
    return found


def runner_of(classes, data=None, loop=True) -> SimpleNamespace:
    loader = SimpleNamespace(dataset=dataset(classes) if data is None else data)
    training = Loop.__new__(Loop) if loop else dict(max_epochs=1)
    return SimpleNamespace(_resume=False, _train_loop=training, train_dataloader=loader, model=Model(len(classes)))


def checkpoint_of(classes, rows=None) -> dict:
    return dict(meta=dict(CLASSES=classes), state_dict=Model(rows or len(classes or 'xx')).state_dict())


@pytest.mark.parametrize(
    'options, checkpoint, named',
    [
        ({}, checkpoint_of(None), 'old_classes'),
        ({}, checkpoint_of(['x', 'y']), 'aliases'),
        ({}, checkpoint_of(['a', 'A']), 'A'),
        (dict(aliases={'z': 'a'}), checkpoint_of(['a', 'b']), 'z'),
        (dict(aliases={'a': 'q'}), checkpoint_of(['a', 'b']), 'q'),
        (dict(old_classes=['a', 'b', 'x']), checkpoint_of(None, rows=2), 'head.fc'),
    ],
)
def test_names_that_do_not_say_which_class_is_which_are_refused(options, checkpoint, named):
    with pytest.raises(ValueError, match=named):
        ClassTransferHook(**options).after_load_checkpoint(runner_of(['a', 'b', 'c']), checkpoint)


@pytest.mark.parametrize(
    'options',
    [
        dict(old_classes=[]),
        dict(old_classes=3),
        dict(old_classes=[1, 2]),
        dict(old_classes='no such data'),
        dict(aliases=['a']),
        dict(aliases={'a': 1}),
    ],
)
def test_options_that_are_no_names_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f'ClassTransferHook.{name}='):
        ClassTransferHook(**options)


def test_nothing_is_done_where_no_training_starts():
    """As when a model of the new classes is tested."""
    for runner in (
        runner_of(['a', 'b', 'c'], loop=False),
        SimpleNamespace(**vars(runner_of(['a'])) | dict(_resume=True)),
    ):
        checkpoint = checkpoint_of(['x', 'y'])
        ClassTransferHook().after_load_checkpoint(runner, checkpoint)
        assert checkpoint['state_dict']['head.fc.weight'].shape == (2, 3)


def test_a_checkpoint_of_weights_alone_is_transferred_in_place():
    checkpoint = checkpoint_of(['a', 'b'])['state_dict']
    rows = checkpoint['head.fc.weight'].clone()
    ClassTransferHook(old_classes=['a', 'b']).after_load_checkpoint(runner_of(['c', 'b', 'a']), checkpoint)
    assert torch.equal(checkpoint['head.fc.weight'][1:], rows.flip(0))


@pytest.mark.parametrize(
    'wrap',
    [
        lambda data: data,
        lambda data: ConcatDataset([data, data], lazy_init=True),
        lambda data: RepeatDataset(data, 2, lazy_init=True),
        lambda data: ClassBalancedDataset(data, 0.5, lazy_init=True),
        lambda data: SimpleNamespace(dataset=ConcatDataset([data], lazy_init=True)),
        lambda data: SimpleNamespace(dataset=data),
        lambda data: SimpleNamespace(metainfo=[data.metainfo], datasets=[data]),
    ],
)
def test_classes_are_found_in_whatever_a_data_set_is_wrapped(wrap):
    assert training_classes(runner_of(['a', 'b'], wrap(dataset(['a', 'b'])))) == ['a', 'b']


def test_a_training_set_without_classes_is_refused():
    with pytest.raises(ValueError, match='metainfo'):
        training_classes(runner_of(['a'], RepeatDataset(dataset([]), 2, lazy_init=True)))


@pytest.mark.parametrize(
    'scope, name, number, first',
    [
        ('mmdet', 'coco', 80, 'person'),
        ('mmdet', 'cityscapes', 8, 'person'),
        ('mmseg', 'cityscapes', 19, 'road'),
        ('mmseg', 'ADE20K', 150, 'wall'),
        ('mmseg', 'voc', 21, 'background'),
        ('mmdet', 'VOCDataset', 20, 'aeroplane'),
        ('mmpretrain', 'imagenet', 1000, 'tench, Tinca tinca'),
        ('mmengine', 'mmdet.LVISV1Dataset', 1203, 'aerosol_can'),
    ],
)
def test_a_stock_data_set_gives_its_classes_by_name(scope, name, number, first):
    with DefaultScope.overwrite_default_scope(scope):
        classes = stock_classes(name)
    assert (len(classes), classes[0]) == (number, first)


def test_the_hook_is_found_in_the_registry():
    assert Runner and isinstance(HOOKS.build(dict(type='ClassTransferHook')), Hook)


@pytest.mark.parametrize('is_here', [True, False])
def test_a_config_is_inspected_with_the_rows_that_training_gets(tmp_path, data, is_here):
    checkpoint = old_checkpoint(tmp_path, data, dict(dataset_meta=dict(classes=OLD)))
    cfg = with_hook(tmp_path, data, checkpoint)
    cfg.optim_wrapper.paramwise_cfg.rollback = dict(max_drift=0.1)
    if not is_here:
        cfg.train_dataloader.dataset = dict(
            type='RepeatDataset',
            times=2,
            dataset=dict(type='CustomDataset', data_root='nowhere', metainfo=dict(classes=[*map(str, range(10))])),
        )
    rows = {row.name: row for row in examine(cfg).parameters}
    old = torch.load(checkpoint)['state_dict']['head.fc.weight'][list(KEPT.values())]
    assert rows['head.fc.weight'].source == checkpoint
    assert rows['head.fc.weight'].size == pytest.approx(float(old.norm()), rel=1e-5)
