"""Forgetting as it is measured while a model trains, against checkpoints and arithmetic of these tests."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from test_runner import StopAfter, pretrained_state
from test_runner import config as small_config
from test_runner import run as train

from olor_mm.engine import DriftHook, PretrainedEvalHook
from olor_mm.layers import layer_index

STOCK = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
STEPS = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackInputs')]
NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
IMAGENET = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='MobileNetV2', widen_factor=1.0),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=1280),
    data_preprocessor=dict(type='ClsDataPreprocessor', **NORM),
)


def config(work_dir, data, *hooks, optim_wrapper=None, iterations=3, **changes) -> Config:
    cfg = small_config(work_dir, data, iterations=iterations, **changes)
    if optim_wrapper is not None:
        cfg.optim_wrapper = {k: v for k, v in optim_wrapper.items() if k != '_delete_'}
    cfg.custom_hooks = [*cfg.custom_hooks, *hooks]
    return cfg


def with_validation(cfg: Config) -> Config:
    stock = Config.fromfile(ROOT / 'configs/classification/olor/mobilenet-v2_olor_1xb32-10e_digits-64px.py')
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        cfg[key] = stock[key]
    cfg.val_dataloader.update(batch_size=6, num_workers=0, persistent_workers=False)
    cfg.val_dataloader.dataset.update(data_root=str(ROOT / 'data/digits/test'), indices=[80 * i for i in range(12)])
    cfg.train_cfg.val_interval = 1
    return cfg


def scalars(work_dir) -> list[dict]:
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def drifts(work_dir) -> dict[int, dict]:
    return {row['step']: row for row in scalars(work_dir) if 'drift/all' in row}


def expected_drift(state: dict, source: dict, index: dict) -> dict[str, float]:
    """In float64; the head has another shape in the checkpoint and is new."""
    sums: dict[str, list[float]] = {}
    for name, (i, _) in index.items():
        if name in source and source[name].shape == state[name].shape:
            start = source[name].double()
            for key in (f'drift/layer_{i:02d}', 'drift/all'):
                pair = sums.setdefault(key, [0.0, 0.0])
                pair[0] += ((state[name].double() - start) ** 2).sum().item()
                pair[1] += (start**2).sum().item()
    return {key: (moved / norm) ** 0.5 for key, (moved, norm) in sums.items()}


def assert_drift(row, runner, checkpoint, source, tolerance=1e-4) -> None:
    expected = expected_drift(checkpoint['state_dict'], source, layer_index(runner.model))
    found = {key: value for key, value in row.items() if key.startswith('drift/')}
    assert found.keys() == expected.keys() and len(expected) > 18
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=tolerance), key
    assert found['drift/all'] > 1e-3


@pytest.mark.parametrize(
    'where', ['anchors', 'own', 'whole', *(pytest.param(where, marks=pytest.mark.slow) for where in ('file', 'frozen'))]
)
def test_drift_is_that_of_the_checkpoint_from_the_pretrained_file(data, tmp_path, where):
    weights = data / 'weights/mobilenet_v2_mmpretrain.pth'
    cfg = config(tmp_path, data, dict(type='DriftHook', interval=2), optim_wrapper=STOCK if where == 'own' else None)
    if where == 'file':
        cfg.optim_wrapper.optimizer.anchor_file = str(weights)
    if where == 'frozen':
        cfg.model.backbone.frozen_stages = 2
    if where == 'whole':  # the head is pre-trained too, and has no anchor
        cfg.load_from, cfg.model.head.num_classes = str(weights), 1000
    runner, checkpoint = train(cfg)
    rows = drifts(tmp_path)
    assert list(rows) == [2, 3]  # every second, and the last
    assert_drift(rows[3], runner, checkpoint, pretrained_state(data))
    kept = checkpoint['olor_drift']['values']
    backbone = {name for name, _ in runner.model.named_parameters() if name.startswith('backbone.')}
    if where in ('own', 'whole'):
        assert set(kept) == (backbone if where == 'own' else {'head.fc.weight', 'head.fc.bias'})
    if where == 'frozen':
        assert set(kept) == {n for n, p in runner.model.named_parameters() if not p.requires_grad}
        assert rows[3]['drift/layer_00'] == 0 < rows[3]['drift/layer_17']
    if where in ('anchors', 'file'):
        assert not kept


def test_drift_from_rounded_anchors_is_within_their_rounding(data, tmp_path):
    cfg = config(tmp_path, data, dict(type='DriftHook', interval=1))
    cfg.optim_wrapper.optimizer.anchor_dtype = 'bfloat16'
    runner, checkpoint = train(cfg)
    expected = expected_drift(checkpoint['state_dict'], pretrained_state(data), layer_index(runner.model))
    for key, value in expected.items():
        assert abs(drifts(tmp_path)[3][key] - value) < 2**-8, key


@pytest.mark.parametrize('optim_wrapper', [STOCK, None], ids=['stock', 'olor'])
def test_a_resumed_run_measures_from_the_same_values(data, tmp_path, optim_wrapper):
    hook = dict(type='DriftHook', interval=1)

    def cfg(**changes):
        return config(tmp_path, data, hook, optim_wrapper=optim_wrapper, epochs=2, **changes)

    runner = Runner.from_cfg(cfg())
    runner.register_hook(StopAfter(1))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    runner, checkpoint = train(cfg(resume=True))
    rows = drifts(tmp_path)
    assert list(rows) == [1, 2, 3, 4, 5, 6]
    assert_drift(rows[6], runner, checkpoint, pretrained_state(data))


@pytest.mark.slow
def test_a_resume_without_the_values_is_refused_and_with_anchors_it_is_not(data, tmp_path):
    for name, optim_wrapper in dict(stock=STOCK, olor=None).items():
        folder = tmp_path / name
        runner = Runner.from_cfg(config(folder, data, optim_wrapper=optim_wrapper, epochs=2))
        runner.register_hook(StopAfter(1))
        with pytest.raises(KeyboardInterrupt):
            runner.train()
        cfg = config(
            folder, data, dict(type='DriftHook', interval=1), optim_wrapper=optim_wrapper, epochs=2, resume=True
        )
        if name == 'stock':
            with pytest.raises(ValueError, match='resumed at iteration 3 from a checkpoint that was saved without'):
                Runner.from_cfg(cfg).train()
        else:
            runner, checkpoint = train(cfg)
            assert_drift(drifts(folder)[6], runner, checkpoint, pretrained_state(data))


def test_nothing_pretrained_is_said_and_prefixes_choose(data, tmp_path):
    cfg = config(tmp_path / 'new', data, dict(type='DriftHook'), optim_wrapper=STOCK)
    cfg.model.backbone.pop('init_cfg')
    with pytest.raises(ValueError, match="nothing is pre-trained .pretrained='auto'.*Set load_from"):
        Runner.from_cfg(cfg).train()
    cfg = config(tmp_path / 'some', data, dict(type='DriftHook', pretrained=['backbone.layer7']), optim_wrapper=STOCK)
    train(cfg)
    [row] = drifts(tmp_path / 'some').values()
    assert set(row) == {'drift/layer_17', 'drift/all', 'step'}


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(interval=0), r'interval=0 is not a number'),
        (dict(pretrained='backbone'), r"pretrained='backbone' is unknown; take 'auto'"),
    ],
)
def test_wrong_options_of_the_drift_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DriftHook(**options)


@pytest.fixture(scope='module')
def photos(data, tmp_path_factory) -> Path:
    """Every eleventh photo."""
    folder = tmp_path_factory.mktemp('photos')
    for file in sorted((data / 'photos').glob('*.png'))[::11]:
        shutil.copy(file, folder)
    return folder


def pretrained_hook(data, photos, **options) -> dict:
    checkpoint = str(data / 'weights/mobilenet_v2_mmpretrain.pth')
    images = dict(images=str(photos), pipeline=STEPS, batch_size=5)
    return {**dict(type='PretrainedEvalHook', model=copy.deepcopy(IMAGENET), checkpoint=checkpoint), **images, **options}


def validations(work_dir) -> list[dict]:
    return [row for row in scalars(work_dir) if any(key.startswith('pretrained') for key in row)]


def predictions(state: dict, photos: Path) -> torch.Tensor:
    """Logits of ImageNet's classifier with these weights, images read by other means than the hook's."""
    import cv2

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build({k: v for k, v in IMAGENET.items() if k != 'data_preprocessor'}).eval()
    model.load_state_dict(state)
    images = [cv2.resize(cv2.imread(str(file)), (64, 64))[..., ::-1].copy() for file in sorted(photos.iterdir())]
    batch = (torch.tensor(images) - torch.tensor(NORM['mean'])) / torch.tensor(NORM['std'])
    with torch.no_grad():
        return model(batch.permute(0, 3, 1, 2), mode='tensor').double()


def agreement_and_divergence(state, original, photos) -> tuple[float, float]:
    p, q = (predictions(s, photos) for s in (original, state))
    divergence = (p.softmax(1) * (p.softmax(1).log() - q.softmax(1).log())).sum(1).mean()
    return 100 * (p.argmax(1) == q.argmax(1)).double().mean().item(), divergence.item()


def pretrained_of(state: dict, source: dict, statistics: bool) -> dict:
    """The ImageNet classifier with a fine-tuned backbone, with its statistics or with those of before."""
    return {
        name: value if name.startswith('head.') or ('running' in name and not statistics) else state[name]
        for name, value in source.items()
    }


def test_an_untouched_model_agrees_wholly_and_its_statistics_are_what_updating_them_changed(data, photos, tmp_path):
    cfg = with_validation(config(tmp_path, data, pretrained_hook(data, photos), optim_wrapper=STOCK))
    cfg.optim_wrapper.optimizer.update(lr=0.0, weight_decay=0.0)
    train(cfg)
    [row] = validations(tmp_path)
    assert row['pretrained_restored/agreement'] == 100 and row['pretrained_restored/kl'] == pytest.approx(0, abs=1e-9)
    assert row['pretrained/agreement'] < 100 and row['pretrained/kl'] > 0.01
    stages = [f'pretrained_restored/cka_stage{i}' for i in range(7)]
    assert [row[key] for key in stages] == pytest.approx([1] * 7) and row['pretrained_restored/cka'] == pytest.approx(1)
    assert 'accuracy/top1' in row and 'pretrained_restored/cka_stage7' not in row

    cfg.model.backbone.norm_eval = True
    cfg.work_dir = str(tmp_path / 'frozen')
    cfg.experiment_name += '_frozen'
    train(cfg)
    [row] = validations(tmp_path / 'frozen')
    assert row['pretrained/agreement'] == 100 and row['pretrained/kl'] == pytest.approx(0, abs=1e-9)
    assert not any(key.startswith('pretrained_restored') for key in row)


class Reinitialise(Hook):
    def before_val_epoch(self, runner):
        torch.manual_seed(3)
        backbone = runner.model.backbone
        for module in backbone.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()


def test_a_random_model_agrees_by_chance(data, photos, tmp_path):
    runner = Runner.from_cfg(with_validation(config(tmp_path, data, pretrained_hook(data, photos), optim_wrapper=STOCK)))
    runner.register_hook(Reinitialise())
    runner.train()
    [row] = validations(tmp_path)
    # 12 photos of 1,000 classes: one that agrees by accident is the most there can be
    assert row['pretrained/agreement'] <= 100 / 12 and row['pretrained/kl'] > 1
    assert row['pretrained/cka'] < 0.95


def test_what_is_measured_is_the_average_that_is_validated_and_saved(data, photos, tmp_path):
    hooks = [dict(type='EMAHook', momentum=0.5), pretrained_hook(data, photos)]
    cfg = with_validation(config(tmp_path, data, *hooks))
    cfg.default_hooks.checkpoint.update(save_best='pretrained/agreement', rule='greater')
    _, checkpoint = train(cfg)
    source = pretrained_state(data)
    [row] = validations(tmp_path)
    for kind, statistics in {'pretrained': True, 'pretrained_restored': False}.items():
        state = pretrained_of(checkpoint['state_dict'], source, statistics)
        agreement, divergence = agreement_and_divergence(state, source, photos)
        assert row[f'{kind}/agreement'] == pytest.approx(agreement)
        assert row[f'{kind}/kl'] == pytest.approx(divergence, rel=1e-3)
    trained = {name.removeprefix('module.'): value for name, value in checkpoint['ema_state_dict'].items()}
    _, divergence = agreement_and_divergence(pretrained_of(trained, source, False), source, photos)
    assert row['pretrained_restored/kl'] != pytest.approx(divergence, rel=1e-2)
    assert list(tmp_path.glob('best_pretrained_agreement*.pth'))


def test_a_run_ends_to_the_bit_as_without_the_hooks(data, photos, tmp_path):
    ends = []
    hooks = [
        pretrained_hook(data, photos, dataloader=labelled(data), evaluator=dict(type='Accuracy')),
        dict(type='DriftHook', interval=1),
    ]
    for name, some in dict(without=[], with_them=hooks).items():
        cfg = with_validation(config(tmp_path / name, data, epochs=2))
        cfg.custom_hooks = some  # none that seeds anew
        cfg.model.head.update(type='StackedLinearClsHead', mid_channels=[16], dropout_rate=0.5)
        ends.append(train(cfg)[1])
    for key, value in ends[0]['state_dict'].items():
        assert torch.equal(value, ends[1]['state_dict'][key]), key
    assert len(validations(tmp_path / 'with_them')) == 2


def labelled(data, **options) -> dict:
    return dict(
        batch_size=6,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(
            type='CustomDataset',
            data_root=str(data / 'digits/test'),
            pipeline=STEPS,
            indices=[40 * i for i in range(25)],
        ),
    )


@pytest.mark.slow
def test_a_chain_of_tasks_keeps_the_first_tasks_head_though_the_second_has_as_many_classes(data, tmp_path):
    first = config(tmp_path / 'a', data, epochs=2, iterations=6)
    _, a = train(first)
    torch.save(dict(state_dict=a['state_dict']), tmp_path / 'a.pth')
    first.test_dataloader, first.test_evaluator = labelled(data), dict(type='Accuracy', topk=(1,))
    first.dump(tmp_path / 'a.py')
    hook = dict(
        type='PretrainedEvalHook', model=str(tmp_path / 'a.py'), checkpoint=str(tmp_path / 'a.pth'), dataloader='test'
    )
    second = with_validation(config(tmp_path / 'b', data, hook, load_from=str(tmp_path / 'a.pth'), iterations=6))
    second.model.backbone.pop('init_cfg')
    _, b = train(second)
    [row] = validations(tmp_path / 'b')
    expected = {}
    for kind, statistics in {'pretrained': True, 'pretrained_restored': False}.items():
        runner = Runner(
            model=first.model,
            data_preprocessor=first.data_preprocessor,
            test_dataloader=first.test_dataloader,
            test_evaluator=first.test_evaluator,
            test_cfg=dict(),
            work_dir=str(tmp_path / kind),
            experiment_name=str(tmp_path / kind).replace('/', '_'),
            default_scope='mmpretrain',
            log_level='ERROR',
        )
        runner.model.load_state_dict(pretrained_of(b['state_dict'], a['state_dict'], statistics))
        expected[f'{kind}/accuracy/top1'] = runner.test()['accuracy/top1']
    assert {key: value for key, value in row.items() if key.startswith('pretrained')} == pytest.approx(expected)
    assert not torch.equal(a['state_dict']['head.fc.weight'], b['state_dict']['head.fc.weight'])


@pytest.mark.slow
def test_a_resumed_run_knows_whose_weights_are_whose(data, photos, tmp_path):
    def cfg(*hooks, **changes):
        return with_validation(config(tmp_path, data, *hooks, optim_wrapper=STOCK, epochs=2, **changes))

    runner = Runner.from_cfg(cfg(pretrained_hook(data, photos)))
    runner.register_hook(StopAfter(1))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    _, checkpoint = train(cfg(pretrained_hook(data, photos), resume=True))
    source = pretrained_state(data)
    state = pretrained_of(checkpoint['state_dict'], source, False)
    agreement, divergence = agreement_and_divergence(state, source, photos)
    row = validations(tmp_path)[-1]
    assert row['pretrained_restored/agreement'] == pytest.approx(agreement)
    assert row['pretrained_restored/kl'] == pytest.approx(divergence, rel=1e-3)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(images=None), "give images='FOLDER' for agreement"),
        (dict(images='no/where'), "images='no/where' is no folder with two images"),
        (dict(dataloader='train'), "dataloader='train' is unknown; take 'val', 'test'"),
        (dict(dataloader='test'), 'has no test_dataloader and test_evaluator'),
        (dict(dataloader=dict(batch_size=1)), 'go together; give both'),
        (dict(keep='head'), r"keep='head' is no list; take \['head'\]"),
        (dict(batch_size=0), 'batch_size=0 is not a number of images'),
        (dict(model=dict(backbone=3)), 'is no config with a model'),
        (dict(prefix='neck.'), r"only 0 of the 158 .*prefix='neck\.'.*does this run load the weights of"),
        (dict(checkpoint='{data}/weights/mobilenet_v2_mmdet.pth'), 'does not have .* parameters of the model'),
    ],
    ids=str,
)
def test_wrong_options_of_the_pretrained_hook_are_named(data, photos, tmp_path, options, message):
    options = {k: v.format(data=data) if isinstance(v, str) else v for k, v in options.items()}
    hook = pretrained_hook(data, photos, **options)

    def start():
        PretrainedEvalHook(**{key: value for key, value in hook.items() if key != 'type'})  # some are seen at once
        Runner.from_cfg(config(tmp_path, data, hook, optim_wrapper=STOCK)).train()

    with pytest.raises(ValueError, match=f'(?s){message}'):
        start()


def test_images_need_a_classifier(data, photos, tmp_path):
    model = copy.deepcopy(IMAGENET)
    model.pop('head')
    state = {n: v for n, v in pretrained_state(data).items() if not n.startswith('head.')}
    torch.save(dict(state_dict=state), tmp_path / 'headless.pth')
    hook = pretrained_hook(data, photos, model=model, checkpoint=str(tmp_path / 'headless.pth'))
    with pytest.raises(ValueError, match='needs a classifier, which ImageClassifier is not: leave images out'):
        Runner.from_cfg(config(tmp_path, data, hook)).train()
    assert PretrainedEvalHook.priority == 'ABOVE_NORMAL'  # before EMAHook
