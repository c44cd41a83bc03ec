"""How much of a drift budget layers use, and how far they would have gone: the table of choosing_how_strong.md.

python benchmarks/budget_use.py        # 6 trainings of 160 steps, 10 minutes on 2 cores; prints the table
"""

import json
import tempfile
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

import olor_mm  # noqa: F401  registers what the config names

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/classification/olor/mobilenet-v2_olor_1xb32-10e_digits-64px.py'
BUDGETS = (0.003, 0.01, 0.03, 0.1, 0.3)
FREE = 1000.0
LAYERS = (0, 15)


def trained(budget: float) -> dict[str, float]:
    """What the log of a run has last: ``drift/layer_00``, ``drift/layer_00_of_budget``, ``accuracy/top1``."""
    cfg = Config.fromfile(CONFIG)
    cfg.optim_wrapper.paramwise_cfg.rollback = dict(max_drift=budget)
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='DriftHook')]
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs
    cfg.randomness = dict(seed=0)
    cfg.log_level = 'ERROR'
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as cfg.work_dir:
        Runner.from_cfg(cfg).train()
        [file] = Path(cfg.work_dir).glob('*/vis_data/scalars.json')
        for line in file.read_text().splitlines():
            found |= json.loads(line)
    return found


def main() -> None:
    free = trained(FREE)
    drifts = ' and '.join(f'{100 * free[f"drift/layer_{i:02d}"]:.1f} %' for i in LAYERS)
    print(f'without: layers {LAYERS} drift by {drifts}; top-1 {free["accuracy/top1"]:.1f} %\n')
    print('| budget | used by layer 0 and 15, % | of the free way, layer 0 and 15 | top-1, % |\n|---:|---:|---:|---:|')
    for budget in BUDGETS:
        row = trained(budget)
        names = [f'drift/layer_{i:02d}' for i in LAYERS]
        used = ', '.join(f'{100 * row[f"{name}_of_budget"]:.0f}' for name in names)
        way = ', '.join(f'{row[name] / free[name]:.2f}' for name in names)
        print(f'| {budget} | {used} | {way} | {row["accuracy/top1"]:.1f} |', flush=True)


if __name__ == '__main__':
    main()
