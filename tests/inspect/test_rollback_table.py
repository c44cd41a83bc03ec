"""print_rollback, against real training, real files and independent arithmetic."""

import csv
import io
import math
import re
import runpy
import sys

import pytest
import torch
import torchvision
from classifiers import classifier
from conftest import ROOT
from digits import config
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import get_torchvision_models
from rich.console import Console

from olor_mm.inspect.rollback_table import examine
from olor_mm.inspect.rollback_views import by_layer, modules_of, print_report

DETECTOR = """
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=16), bbox_head=dict(in_channels=16, fc_out_channels=16)))
"""


def detector(tmp_path, lines='') -> Config:
    file = tmp_path / 'detector.py'
    file.write_text(DETECTOR + lines)
    return Config.fromfile(file)


def printed(report, **options) -> str:
    console = Console(width=100, file=io.StringIO())
    print_report(report, console, **options)
    return console.file.getvalue()


class Watch(Hook):
    """Notes w of every parameter in each step, before the schedule goes on, and what has an anchor after the last."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        optimizer = runner.optim_wrapper.optimizer
        self.steps = [*getattr(self, 'steps', []), {}]
        for group in optimizer.param_groups:
            self.steps[-1].update(dict.fromkeys(group['names'], (group['lr'], optimizer.rollback_weight(group))))

    def after_train(self, runner):
        state = runner.optim_wrapper.optimizer.state
        names = {p: name for name, p in runner.model.named_parameters()}
        self.anchors = {names[p]: entry['anchor'] for p, entry in state.items() if 'anchor' in entry}


def test_it_says_what_training_then_does(data, tmp_path):
    scheduler = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3),
        dict(type='CosineAnnealingLR', T_max=4, by_epoch=True, begin=1, end=4, convert_to_iter_based=True),
        dict(type='MultiStepLR', milestones=[3], by_epoch=True),
    ]
    cfg = config(tmp_path, data, epochs=4)
    cfg.param_scheduler = scheduler
    cfg.optim_wrapper.optimizer.foreach = True  # nothing to compile
    cfg.default_hooks.checkpoint.interval = 100  # nor to save
    cfg.train_dataloader.update(batch_size=2, dataset={**cfg.train_dataloader.dataset, 'indices': list(range(6))})
    report = examine(cfg)
    runner, watch = Runner.from_cfg(cfg), Watch()
    runner.register_hook(watch)
    runner.train()
    assert report.iterations == len(watch.steps) == 12 and report.steps_per_epoch == 3
    rates = [step['head.fc.weight'][0] for step in watch.steps]
    assert report.top_iteration == rates.index(max(rates)) > 0
    for row in report.parameters:
        points = [watch.steps[i][row.name] for i in (0, report.top_iteration, 11)]
        assert row.lr == pytest.approx([lr for lr, _ in points], rel=1e-6)
        assert row.w == pytest.approx([w if row.name in watch.anchors else 0 for _, w in points], rel=1e-6)
        assert row.anchor_bytes == (4 * row.number if row.name in watch.anchors else 0)
        assert (row.source == cfg.model.backbone.init_cfg.checkpoint) == row.name.startswith('backbone.')
    assert len(watch.anchors) == 156 and 'the data set here' in report.data


def test_figures_are_those_of_the_formulas(tmp_path, cache):
    lines = """
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', constructor='olor_mm.OLOROptimWrapperConstructor', accumulative_counts=2,
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(rollback=dict(max_level=0.08, min_level=0.01, power=2.), norm_decay_mult=0.))
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
                   dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11])]
"""
    report = examine(detector(tmp_path, lines), images=2001)
    assert report.steps_per_epoch == 1001 / 2 and report.iterations == 12012 and report.top_iteration == 99
    rows = {row.name: row for row in report.parameters}
    for name, i in {'backbone.layer2.0.conv1.weight': 3, 'backbone.layer4.1.conv2.weight': 8}.items():
        level = 0.01 + (1 - i / 9) ** 2 * 0.07
        row = rows[name]
        assert (row.layer, row.layers, row.frozen) == (i, 9, False)
        assert row.level == pytest.approx(level, rel=1e-12)
        assert row.lr == pytest.approx((1e-5, 1e-3, 1e-5), rel=1e-6)
        assert row.w == pytest.approx((level / 100, level, level / 100), rel=1e-6)
        assert row.half_life == pytest.approx(-1 / math.log2(1 - level), rel=1e-6)
        assert row.weight_decay == 0.05 and row.anchor_bytes == 4 * row.number
    assert (
        rows['backbone.layer2.0.bn1.weight'].weight_decay == 0 and rows['backbone.layer2.0.bn1.weight'].norm == 'frozen'
    )
    stem, head = rows['backbone.conv1.weight'], rows['roi_head.bbox_head.fc_cls.weight']
    assert stem.frozen and stem.anchor_bytes == 0 and stem.source == 'torchvision://resnet18'
    assert head.source == 'new' and head.level == pytest.approx(0.01) and not any(head.w) and head.half_life is None
    text = printed(report)
    [row] = [line.split() for line in text.splitlines() if re.match(r' +3 +0\.001 ', line)]
    level = 0.01 + (1 - 3 / 9) ** 2 * 0.07
    expected = [f'{level:.3g}', f'{level / 100:.3g}', f'{level:.3g}', f'{level / 100:.3g}']
    assert row[5:] == [*expected, f'{-1 / math.log2(1 - level):.0f}', f'{-1 / math.log2(1 - level) / 500.5:.2g}']


def test_what_is_in_the_cache_is_loaded_and_decides(tmp_path, cache):
    report = examine(detector(tmp_path))
    assert report.sources['torchvision://resnet18'].startswith('declared, not verified: not in ')
    text = printed(report)
    assert 'declared, not verified' in text and 'Declared checkpoints' in text and 'in steps only' in text

    state = torchvision.models.resnet18().state_dict()
    state = {name: value for name, value in state.items() if not name.startswith(('layer4.1', 'fc'))}
    torch.save(state, cache / get_torchvision_models()['resnet18'].rpartition('/')[2])
    report = examine(detector(tmp_path))
    assert report.sources == {'torchvision://resnet18': 'loaded'}
    for row in report.parameters:
        is_held = row.name.startswith(('backbone.layer2', 'backbone.layer3', 'backbone.layer4.0'))
        assert any(row.w) == is_held, row.name
        assert (row.source == 'new') == (row.name.removeprefix('backbone.') not in state), row.name
    assert 'Declared' not in printed(report)


def test_a_checkpoint_of_which_another_one_leaves_nothing_is_not_listed(tmp_path, cache):
    cfg = detector(tmp_path)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'all.pth')
    cfg.load_from = str(tmp_path / 'all.pth')
    assert examine(cfg).sources == {cfg.load_from: 'loaded'}


def test_lines_for_a_config_without_rollback_give_what_is_shown(tmp_path, cache):
    theirs = """
optim_wrapper = dict(
    constructor='LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(decay_rate=0.7, num_layers=6, custom_keys={'neck': dict(lr_mult=3.)}))
"""
    shown = examine(detector(tmp_path, theirs))
    assert '# instead of LearningRateDecayOptimizerConstructor and its decay_rate, num_layers\n' in shown.lines_to_add
    assert shown.lines_to_add in printed(shown)
    (tmp_path / 'theirs.py').write_text(DETECTOR + theirs)
    (tmp_path / 'ours.py').write_text(f"_base_ = './theirs.py'\n{shown.lines_to_add}\n")
    added = examine(Config.fromfile(tmp_path / 'ours.py'))
    assert not added.lines_to_add and added.parameters == shown.parameters
    assert max(row.level or 0 for row in added.parameters) > 0
    neck = [row.lr[1] for row in added.parameters if row.name.startswith('neck')]
    assert len(neck) == 16 and neck == pytest.approx([3 * 0.02] * 16)


def test_stages_that_freeze_in_training_have_a_level_and_no_anchor():
    cfg = classifier(
        model=dict(
            backbone=dict(
                _delete_=True,
                type='SwinTransformer',
                arch=dict(embed_dims=24, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
                frozen_stages=1,
                init_cfg=dict(type='Pretrained', checkpoint='https://no.where/swin.pth'),
            ),
            head=dict(in_channels=192),
        )
    )
    report = examine(cfg, images=64)
    frozen = [row for row in report.parameters if row.name.startswith(('backbone.patch_embed', 'backbone.stages.0'))]
    assert frozen and all(row.frozen and row.level > 0 and not any(row.w) for row in frozen if row.layer < 2)
    held = [row for row in report.parameters if any(row.w)]
    assert {'2', '3'} <= {row.name.split('.')[2] for row in held} and not any(row.frozen for row in held)
    assert sum(row.anchor_bytes for row in report.parameters) == 4 * sum(row.number for row in held)
    assert {row.norm for row in report.parameters} == {'', 'none'}


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'model.backbone.init_cfg': None}, 'Training would stop before its first step: .*no checkpoint was loaded'),
        ({'model.backbone.init_cfg.checkpoint': 'none/here.pth'}, r'none/here\.pth. is not here'),
        ({'optim_wrapper.paramwise_cfg.rollback.max_level': 0.0}, 'lambda is 0 everywhere'),
        ({'param_scheduler': None}, "coupling='lr' without a param_scheduler"),
        (
            {'model.backbone.init_cfg': None, 'optim_wrapper.paramwise_cfg.rollback.pretrained': ['backbone']},
            r'\d+ parameters, like backbone\.\S+, count as pre-trained',
        ),
        ({'optim_wrapper.optimizer.weight_decay': 0.2}, 'layer 15, 16, 17 .* 74% of'),
        ({'param_scheduler': dict(_delete_=True, type='PolyLR', by_epoch=False, end=9999)}, 'longer than .* 9,999'),
        ({'param_scheduler.eta_min': 0.1}, 'learning rate rises above'),
        (
            {'optim_wrapper.paramwise_cfg.rollback.max_level': 1e-5, 'optim_wrapper.optimizer.weight_decay': 0.0},
            'Rollback will hardly show',
        ),
        ({'optim_wrapper.paramwise_cfg.rollback.rule': 'spd'}, "rule='spd': .* lambda"),
        (
            {
                'optim_wrapper.paramwise_cfg.rollback': dict(rule='l2sp_decoupled', max_level=100.0),
                'optim_wrapper.optimizer.weight_decay': 0.0,
            },
            "rule='l2sp_decoupled': .* alpha",
        ),
    ],
    ids=range(11),
)
def test_warnings_say_what_looks_wrong(data, changes, message):
    [warning] = examine(classifier(**changes), images=640).warnings
    assert re.search(message, warning), warning


@pytest.mark.parametrize('stages, is_said', [(3, True), (2, False), (-1, False)])
def test_it_says_that_all_that_would_be_rolled_back_is_frozen(stages, is_said):
    swin = dict(_delete_=True, type='SwinTransformer', arch=dict(embed_dims=24, depths=[1] * 4, num_heads=[1] * 4))
    swin |= dict(frozen_stages=stages, init_cfg=dict(type='Pretrained', checkpoint='https://no.where/swin.pth'))
    report = examine(classifier(model=dict(backbone=swin, head=dict(in_channels=192))), images=64000)
    assert any('frozen' in warning for warning in report.warnings) == is_said, report.warnings


def test_a_sound_config_gives_no_warning(data):
    assert examine(classifier(), images=640).warnings == []


def test_modules_are_the_outermost_that_are_in_one_layer(tmp_path, cache):
    layers = by_layer(examine(detector(tmp_path)).parameters)
    assert [rows[0].layer for rows in layers] == list(range(10))
    modules = modules_of(layers)
    assert modules[0] == ['backbone.{conv1, bn1}']
    assert modules[1:3] == [['backbone.layer1.0'], ['backbone.layer1.1']]
    assert modules[9] == ['neck, rpn_head, roi_head']


def run_tool(monkeypatch, *arguments) -> None:
    """In this process: the libraries take long to import."""
    monkeypatch.setattr(sys, 'argv', ['print_rollback.py', *map(str, arguments)])
    runpy.run_path(str(ROOT / 'tools/analysis_tools/print_rollback.py'), run_name='__main__')


def test_the_tool_prints_writes_and_draws(tmp_path, cache, monkeypatch, capsys):
    table, picture, file = tmp_path / 'rows.csv', tmp_path / 'levels.png', tmp_path / 'detector.py'
    file.write_text(DETECTOR)
    run_tool(monkeypatch, file, '--parameters', '--images', 1000, '--csv', table, '--plot', picture)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 100 and '\u2026' not in printed
    rows = list(csv.DictReader(table.open()))
    assert (
        all(row['parameter'] in lines for row in rows) and len(rows) == 20 * 3 + 8 * 2 + 3 * 2 + 4 * 2
    )  # backbone, neck, RPN, box head
    row = {row['parameter']: row for row in rows}['backbone.layer3.0.conv1.weight']
    level = 0.01 * (1 - 5 / 9)
    assert float(row['lambda']) == pytest.approx(level) and float(row['w_top']) == pytest.approx(level)
    assert float(row['half_life_epochs']) == pytest.approx(-1 / math.log2(1 - level) / 500)
    assert (
        row['source'] == 'torchvision://resnet18'
        and row['frozen'] == '0'
        and row['anchor_bytes'] == str(4 * 256 * 128 * 9)
    )
    assert picture.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['no/such.py', '--images', '-1'], '--images -1'),
        (['no/such.py'], "'no/such.py' is not a file"),
        (['{tmp}/unknown.py'], 'NoSuchNet is not in the mmdet::model registry'),
        (['{tmp}/detector.py', '--csv', '{tmp}/no/rows.csv'], "--csv '{tmp}/no/rows.csv'"),
        (['{tmp}/detector.py', '--images', '1', '--csv', '{tmp}'], 'print_rollback: .*--csv {tmp}'),
        (['no/such.py', '--load-from', 'no.pth'], "--load-from.* 'no.pth'"),
        (['{tmp}/broken.py'], "broken.py' cannot be read: SyntaxError"),
        (['{tmp}/testing.py'], 'optim_wrapper=None'),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else '',
)
def test_mistakes_end_with_one_plain_error(tmp_path, cache, monkeypatch, capsys, arguments, message):
    (tmp_path / 'detector.py').write_text(DETECTOR)
    (tmp_path / 'unknown.py').write_text(f"{DETECTOR}model['type'] = 'NoSuchNet'")
    (tmp_path / 'broken.py').write_text('model = (')
    (tmp_path / 'testing.py').write_text("model = dict(type='ResNet', depth=18)")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_tool(monkeypatch, *(word.format(tmp=tmp_path) for word in arguments))
    assert stop.value.code != 0
    printed = capsys.readouterr().err + str(stop.value)
    assert re.search(message.format(tmp=tmp_path), printed), printed
