"""What the pre-trained model still does, as measured while a model trains, against evaluations of these tests."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from copies import WAYS, Average, beside_a_copy
from digits import StopAfter, pretrained_state, train
from hook_runs import SHARDED, STOCK, config, process_group, scalars, with_validation
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from olor_mm.engine import PretrainedEvalHook

STEPS = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackInputs')]
NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
IMAGENET = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='MobileNetV2', widen_factor=1.0),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=1280),
    data_preprocessor=dict(type='ClsDataPreprocessor', **NORM),
)
KINDS = {'pretrained': True, 'pretrained_restored': False}  # whether the statistics are those of fine-tuning


@pytest.fixture(scope='module')
def photos(data, tmp_path_factory) -> Path:
    """Every eleventh photo, 12 of them."""
    folder = tmp_path_factory.mktemp('photos')
    for file in sorted((data / 'photos').glob('*.png'))[::11]:
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope='module')
def fine_tuning(data, tmp_path_factory) -> Runner:
    """A runner that has built everything and loaded the pre-trained backbone."""
    runner = Runner.from_cfg(config(tmp_path_factory.mktemp('fine_tuning'), data, optim_wrapper=STOCK))
    runner.model.init_weights()
    return runner


def options(data, photos, **changes) -> dict:
    checkpoint = str(data / 'weights/mobilenet_v2_mmpretrain.pth')
    images = dict(images=str(photos), pipeline=STEPS, batch_size=5)
    return {**dict(model=copy.deepcopy(IMAGENET), checkpoint=checkpoint), **images, **changes}


def hook_cfg(data, photos, **changes) -> dict:
    return dict(type='PretrainedEvalHook', **options(data, photos, **changes))


def validations(work_dir) -> list[dict]:
    return scalars(work_dir, 'pretrained')


def predictions(state: dict, photos: Path) -> torch.Tensor:
    """Logits of ImageNet's classifier with these weights, images read by other means than the hook's."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build({k: v for k, v in IMAGENET.items() if k != 'data_preprocessor'}).eval()
    model.load_state_dict(state)
    images = [cv2.resize(cv2.imread(str(file)), (64, 64))[..., ::-1] for file in sorted(photos.iterdir())]
    batch = (torch.tensor(np.stack(images)) - torch.tensor(NORM['mean'])) / torch.tensor(NORM['std'])
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
    cfg = with_validation(config(tmp_path / 'updated', data, hook_cfg(data, photos), optim_wrapper=STOCK))
    cfg.optim_wrapper.optimizer.update(lr=0.0, weight_decay=0.0)
    train(cfg)
    [row] = validations(tmp_path / 'updated')
    assert row['pretrained_restored/agreement'] == 100 and row['pretrained_restored/kl'] == pytest.approx(0, abs=1e-9)
    assert row['pretrained/agreement'] < 100 and row['pretrained/kl'] > 0.01
    stages = [f'pretrained_restored/cka_stage{i}' for i in range(7)]
    assert [row[key] for key in stages] == pytest.approx([1] * 7) and row['pretrained_restored/cka'] == pytest.approx(1)
    assert 'accuracy/top1' in row and 'pretrained_restored/cka_stage7' not in row

    frozen = with_validation(config(tmp_path / 'frozen', data, hook_cfg(data, photos), optim_wrapper=STOCK))
    frozen.optim_wrapper.optimizer.update(lr=0.0, weight_decay=0.0)
    frozen.model.backbone.norm_eval = True
    train(frozen)
    [row] = validations(tmp_path / 'frozen')
    assert row['pretrained/agreement'] == 100 and row['pretrained/kl'] == pytest.approx(0, abs=1e-9)
    assert not any(key.startswith('pretrained_restored') for key in row)


class Reinitialise(Hook):
    def before_val_epoch(self, runner):
        torch.manual_seed(3)
        for module in runner.model.backbone.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()


def test_a_random_model_agrees_by_chance(data, photos, tmp_path):
    cfg = with_validation(config(tmp_path, data, hook_cfg(data, photos), optim_wrapper=STOCK, iterations=1))
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Reinitialise())
    runner.train()
    [row] = validations(tmp_path)
    # 12 photos of 1,000 classes: one that agrees by accident is the most there can be
    assert row['pretrained/agreement'] <= 100 / 12 and row['pretrained/kl'] > 1
    assert row['pretrained/cka'] < 0.95


def test_what_is_measured_is_the_average_that_is_validated_and_saved(data, photos, tmp_path):
    hooks = [dict(type='EMAHook', momentum=0.5), hook_cfg(data, photos)]
    cfg = with_validation(config(tmp_path, data, *hooks))
    cfg.default_hooks.checkpoint.update(save_best='pretrained/agreement', rule='greater')
    _, checkpoint = train(cfg)
    source = pretrained_state(data)
    [row] = validations(tmp_path)
    for kind, statistics in KINDS.items():
        state = pretrained_of(checkpoint['state_dict'], source, statistics)
        agreement, divergence = agreement_and_divergence(state, source, photos)
        assert row[f'{kind}/agreement'] == pytest.approx(agreement)
        assert row[f'{kind}/kl'] == pytest.approx(divergence, rel=1e-3)
    trained = {name.removeprefix('module.'): value for name, value in checkpoint['ema_state_dict'].items()}
    _, divergence = agreement_and_divergence(pretrained_of(trained, source, False), source, photos)
    assert row['pretrained_restored/kl'] != pytest.approx(divergence, rel=1e-2)
    assert list(tmp_path.glob('best_pretrained_agreement*.pth'))


SLOW_WAYS = ('train()', 'lr_mult')


@pytest.mark.parametrize('way', [pytest.param(w, marks=pytest.mark.slow) if w in SLOW_WAYS else w for w in WAYS])
def test_a_copy_that_is_not_trained_is_never_measured(data, photos, tmp_path, way):
    cfg = beside_a_copy(with_validation(config(tmp_path, data, hook_cfg(data, photos), optim_wrapper=STOCK)), way)
    runner = Runner.from_cfg(cfg)
    if way == 'average':
        runner.register_hook(Average())
    runner.train()
    student = {f'backbone.{name}': value for name, value in runner.model.student.state_dict().items()}
    source = pretrained_state(data)
    [row] = validations(tmp_path)
    for kind, statistics in KINDS.items():
        _, divergence = agreement_and_divergence(pretrained_of(student, source, statistics), source, photos)
        assert row[f'{kind}/kl'] == pytest.approx(divergence, rel=1e-3) and divergence > 0


def test_of_two_that_are_trained_the_log_says_which_is_measured(data, photos, tmp_path):
    cfg = with_validation(config(tmp_path, data, hook_cfg(data, photos), optim_wrapper=STOCK, log_level='INFO'))
    cfg = beside_a_copy(cfg, 'lr_mult')
    cfg.optim_wrapper.pop('paramwise_cfg')
    runner = Runner.from_cfg(cfg)
    runner.train()
    [log] = tmp_path.rglob('*.log')
    assert "teacher. is measured; student. has the same weights. Set prefix='student.'" in log.read_text()


def labelled(data) -> dict:
    digits = dict(data_root=str(data / 'digits/test'), indices=[40 * i for i in range(25)], serialize_data=False)
    return dict(
        batch_size=6,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(type='CustomDataset', pipeline=STEPS, **digits),
    )


def test_a_run_ends_to_the_bit_as_without_the_hooks(data, photos, tmp_path):
    ends = []
    hooks = [
        hook_cfg(data, photos, dataloader=labelled(data), evaluator=dict(type='Accuracy')),
        dict(type='DriftHook', interval=1),
    ]
    for name, some in dict(without=[], with_them=hooks).items():
        cfg = with_validation(config(tmp_path / name, data, epochs=2, iterations=2))
        cfg.custom_hooks = some  # none that seeds anew
        cfg.model.head.update(type='StackedLinearClsHead', mid_channels=[16], dropout_rate=0.5)
        ends.append(train(cfg)[1])
    for key, value in ends[0]['state_dict'].items():
        assert torch.equal(value, ends[1]['state_dict'][key]), key
    assert len(validations(tmp_path / 'with_them')) == 2


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
    for kind, statistics in KINDS.items():
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
@pytest.mark.parametrize('key', ['olor_pretrained', 'olor_upstream'])
def test_a_resumed_run_knows_whose_weights_are_whose(data, photos, tmp_path, key):
    """Also from a checkpoint of version 0.1, which has it under another key."""

    def cfg(**changes):
        hook = hook_cfg(data, photos)
        return with_validation(config(tmp_path, data, hook, optim_wrapper=STOCK, epochs=2, **changes))

    runner = Runner.from_cfg(cfg())
    runner.register_hook(StopAfter(1))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    file = tmp_path / 'epoch_1.pth'
    checkpoint = torch.load(file, weights_only=False)
    checkpoint[key] = checkpoint.pop('olor_pretrained')
    plain = cfg(load_from=str(tmp_path / 'renamed.pth'), resume=True)
    torch.save(checkpoint, plain.load_from)
    _, checkpoint = train(plain)
    source = pretrained_state(data)
    state = pretrained_of(checkpoint['state_dict'], source, False)
    agreement, divergence = agreement_and_divergence(state, source, photos)
    row = validations(tmp_path)[-1]
    assert row['pretrained_restored/agreement'] == pytest.approx(agreement)
    assert row['pretrained_restored/kl'] == pytest.approx(divergence, rel=1e-3)
    assert checkpoint['olor_pretrained'] and 'olor_upstream' not in checkpoint


def test_names_in_a_checkpoint_of_version_0_1_are_used_and_without_any_a_resume_is_refused(data, photos):
    names, later = {'backbone.a': 'backbone.a'}, SimpleNamespace(iter=3)
    hook = PretrainedEvalHook(**options(data, photos))
    hook.after_load_checkpoint(later, dict(olor_upstream=names))
    hook.before_train(later)
    saved: dict = {}
    hook.before_save_checkpoint(later, saved)
    assert saved == dict(olor_pretrained=names)
    hook = PretrainedEvalHook(**options(data, photos))
    hook.after_load_checkpoint(later, {})
    with pytest.raises(ValueError, match='PretrainedEvalHook: the resumed checkpoint was saved without it'):
        hook.before_train(later)
    metrics: dict = {}
    hook.after_val_epoch(later, metrics)  # of a model that was not trained with the hook
    assert not metrics


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(images=None), "give images='FOLDER'"),
        (dict(images='no/where'), "images='no/where' is not a folder"),
        (dict(dataloader='train'), "dataloader='train' is unknown; give 'val', 'test'"),
        (dict(dataloader='test'), "dataloader='test': .* give both as dicts"),
        (dict(dataloader=dict(batch_size=1)), "dataloader={'batch_size': 1} and evaluator=None go together; give both"),
        (dict(keep='head'), r"keep='head' is not a list; give \['head'\]"),
        (dict(batch_size=0), 'batch_size=0 is not a number of images'),
        (dict(model=dict(backbone=3)), r"model={'backbone': 3} is not a config"),
        (dict(prefix='neck.'), r"0 of the 158 .*prefix='neck\.'.*does it load checkpoint="),
        (dict(checkpoint='{data}/weights/mobilenet_v2_mmdet.pth'), r'checkpoint=.*mmdet\.pth.* do not fit'),
    ],
    ids=str,
)
def test_wrong_options_are_named(data, photos, fine_tuning, changes, message):
    changes = {k: v.format(data=data) if isinstance(v, str) else v for k, v in changes.items()}

    def start():
        hook = PretrainedEvalHook(**options(data, photos, **changes))
        hook.before_run(fine_tuning)
        hook.before_train(fine_tuning)

    with pytest.raises(ValueError, match=f'(?s)PretrainedEvalHook.*{message}'):
        start()


def test_images_need_a_classifier(data, photos, tmp_path):
    model = copy.deepcopy(IMAGENET)
    model.pop('head')
    state = {n: v for n, v in pretrained_state(data).items() if not n.startswith('head.')}
    torch.save(dict(state_dict=state), tmp_path / 'headless.pth')
    hook = hook_cfg(data, photos, model=model, checkpoint=str(tmp_path / 'headless.pth'))
    with pytest.raises(ValueError, match='ImageClassifier is not a classifier; give dataloader'):
        Runner.from_cfg(config(tmp_path, data, hook)).train()


@pytest.mark.parametrize(
    'watching',
    [
        dict(type='CheckpointHook', save_best='upstream/agreement', rule='greater'),
        dict(type='SafeCheckpointHook', save_best=['accuracy/top1', 'upstream/agreement'], rule='greater'),
        dict(type='EarlyStoppingHook', monitor='upstream/agreement', rule='greater'),
    ],
    ids=lambda hook: hook['type'],
)
def test_metrics_by_their_old_name_are_refused(data, photos, tmp_path, watching):
    cfg = with_validation(config(tmp_path, data, hook_cfg(data, photos), watching, optim_wrapper=STOCK))
    with pytest.raises(ValueError, match=f"{watching['type']}: .*'upstream/agreement'.*'pretrained/agreement'"):
        Runner.from_cfg(cfg).train()


@pytest.mark.parametrize('way', SHARDED)
def test_sharded_weights_are_refused(data, photos, tmp_path, way):
    hook = PretrainedEvalHook(**options(data, photos))
    with process_group(tmp_path), pytest.raises(ValueError, match='PretrainedEvalHook .*FSDP'):
        hook.before_run(SimpleNamespace(model=SHARDED[way](), hooks=[]))
