"""Exact mode in runs of MMEngine: with averaged weights, resumed, exported, with AMP, in a config on disk."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import tool
from exactness import NEW, build, images, is_same, old_classes, outputs, stock, trained
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner, load_checkpoint
from torch.utils.data import DataLoader, Dataset

from olor_mm.extend.exact import exact_config

MODELS = dict(
    RTMDet='mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',  # whose stock config averages weights and buffers
    SegFormer='mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
)
PLAIN = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1))
AVERAGED = dict(type='EMAHook', ema_type='mmdet.ExpMomentumEMA', momentum=0.3, update_buffers=True, priority=49)


class Samples(Dataset):
    def __init__(self, samples: list[dict]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        return copy.deepcopy(self.samples[index])


@pytest.fixture(params=MODELS, scope='module')
def case(request, tmp_path_factory):
    """The stock config, its checkpoint, images, and what the old model predicts for them."""
    torch.manual_seed(0)
    cfg, file = stock(MODELS[request.param]), tmp_path_factory.mktemp('old') / 'old.pth'
    cfg.custom_hooks = [AVERAGED]
    old, samples = trained(cfg, file), images(cfg, 4)
    return cfg, file, samples, outputs(old, samples, len(old_classes(cfg)))


def run(cfg: Config, samples: list[dict], work_dir: Path, epochs: int = 2, wrapper: dict = PLAIN, **options) -> Runner:
    runner = Runner(
        model=copy.deepcopy(cfg.model),
        work_dir=str(work_dir),
        train_dataloader=DataLoader(Samples(samples), batch_size=2, collate_fn=pseudo_collate),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=copy.deepcopy(wrapper),
        custom_hooks=copy.deepcopy(cfg.get('custom_hooks')),
        default_scope=cfg.default_scope,
        experiment_name=f'{work_dir.name}_{epochs}',
        randomness=dict(seed=0),
        log_level='ERROR',
        **options,
    )
    runner.train()
    return runner


def tensors(node) -> list[torch.Tensor]:
    return [node] if torch.is_tensor(node) else [tensor for part in node for tensor in tensors(part)]


def loaded(cfg: Config, file: Path) -> torch.nn.Module:
    model = build(cfg)
    load_checkpoint(model, str(file), map_location='cpu', strict=True, logger='silent')
    return model


def test_old_outputs_are_the_same_bits_after_training_with_averaged_weights_and_after_resume(case, tmp_path):
    cfg, file, samples, before = case
    classes = len(old_classes(cfg))
    exact = exact_config(cfg, old_classes(cfg), NEW)
    runner = run(exact, samples, tmp_path, load_from=str(file))
    assert is_same(outputs(runner.model, samples, classes), before)
    first = loaded(exact, tmp_path / 'epoch_2.pth')  # of averaged weights
    assert is_same(outputs(first, samples, classes), before)

    resumed = run(exact, samples, tmp_path, epochs=4, load_from=str(tmp_path / 'epoch_2.pth'), resume=True)
    assert resumed.iter == 8 and is_same(outputs(resumed.model, samples, classes), before)
    second = loaded(exact, tmp_path / 'epoch_4.pth')
    assert is_same(outputs(second, samples, classes), before)
    assert not is_same(outputs(second, samples, classes, of_new=True), outputs(first, samples, classes, of_new=True))


def test_old_outputs_are_the_same_bits_after_training_with_amp(case, tmp_path, amp_on_cpu):
    cfg, file, samples, before = case
    exact = exact_config(cfg, old_classes(cfg), NEW)
    amp = dict(PLAIN, type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0)
    runner = run(exact, samples, tmp_path, epochs=1, wrapper=amp, load_from=str(file))
    classes = len(old_classes(cfg))
    assert is_same(outputs(runner.model, samples, classes), before)
    old = loaded(cfg, file)
    inputs = torch.stack([sample['inputs'].float() for sample in samples])
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        found = [tensors(model.eval()(inputs, mode='tensor')) for model in (runner.model, old)]
    assert all(map(torch.equal, *found)) and found[0][0].dtype == torch.bfloat16


def test_a_run_without_the_old_checkpoint_ends_before_the_first_step(case, tmp_path):
    cfg, _, samples, _ = case
    with pytest.raises(ValueError, match='load_from'):
        run(exact_config(cfg, old_classes(cfg), NEW), samples, tmp_path)


def test_rollback_holds_the_part_of_a_branch_that_started_from_old_weights(case, tmp_path):
    cfg, file, samples, before = case
    wrapper = dict(
        type='OptimWrapper',
        constructor='olor_mm.OLOROptimWrapperConstructor',
        optimizer=dict(type='olor_mm.AdamWOLOR', lr=1e-3),
        paramwise_cfg=dict(rollback=dict(max_level=0.1, min_level=0.1)),
    )
    exact = exact_config(cfg, old_classes(cfg), NEW)
    runner = run(exact, samples, tmp_path, epochs=1, wrapper=wrapper, load_from=str(file))
    anchored = {p for p, state in runner.optim_wrapper.optimizer.state.items() if 'anchor' in state}
    names = {name for name, p in runner.model.named_parameters() if p in anchored}
    assert names and all(name.startswith('new_branches.') for name in names)
    assert is_same(outputs(runner.model, samples, len(old_classes(cfg))), before)


def test_a_config_on_disk_is_three_settings_and_print_rollback_reads_it(tmp_path):
    file = tmp_path / 'exact.py'
    base = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    model = "dict(type='olor_mm.ExactModel', old_type=_base_.model.type, branches=[80, 2])"
    wrapper = (
        "dict(constructor='olor_mm.OLOROptimWrapperConstructor', paramwise_cfg=dict(rollback=dict(max_level=0.01)))"
    )
    file.write_text(f"_base_ = '{base}'\nmodel = {model}\noptim_wrapper = {wrapper}\nload_from = None\n")
    stock_cfg = Config.fromfile(file)
    assert stock_cfg.model.old_type == 'RetinaNet' and stock_cfg.model.backbone.depth == 18
    assert 'new_branches' in tool('olor_mm', 'print_rollback', file, '--images', 10, check=False).stdout
