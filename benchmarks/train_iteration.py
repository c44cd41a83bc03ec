"""Time of a whole training iteration of stock models, with stock AdamW and with OLOR, on CPU.

python benchmarks/train_iteration.py                         # 5 minutes
python benchmarks/train_iteration.py --models swin-t --repeats 5
python benchmarks/train_iteration.py --out docs/en/benchmarks   # writes table and CSV
"""

import copy
import shlex
import statistics
import sys
from collections.abc import Callable

import numpy as np
import torch
from common import ADAMW, Report, arguments, console, in_turns, medians, olor_wrapper, start, stock_model, stock_wrapper
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

MODELS = {
    'swin-t': 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
    'mask-rcnn_r50_fpn': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
}
STOCK = "AdamW, MMEngine's default groups"
OURS = 'OLOR as the constructor builds it'
BUDGET = 'OLOR, drift budget'
FUSED = 'AdamW, fused, one group'


def data_of(name: str) -> dict:
    """A batch as the data loader gives it: 4 random images of 224 x 224, or one of 320 x 320 with boxes and masks."""
    if name == 'swin-t':
        from mmpretrain.structures import DataSample

        images = torch.randint(0, 256, (4, 3, 224, 224), dtype=torch.uint8)
        return dict(inputs=images, data_samples=[DataSample().set_gt_label(label) for label in range(4)])
    from mmdet.testing import demo_mm_inputs

    return demo_mm_inputs(1, [(3, 320, 320)], num_items=[4], num_classes=80, with_mask=True)


def budget_wrapper(model: nn.Module) -> OptimWrapper:
    return olor_wrapper(model, max_drift=0.05)


def fused_wrapper(model: nn.Module) -> OptimWrapper:
    """No options for parts of the model: MMEngine then makes one group."""
    return build_optim_wrapper(model, dict(optimizer=dict(ADAMW, fused=True)))


ROWS: dict[str, Callable[[nn.Module], OptimWrapper]] = {
    STOCK: stock_wrapper,
    OURS: olor_wrapper,
    BUDGET: budget_wrapper,
    FUSED: fused_wrapper,
}


def iteration(model: nn.Module, wrapper: OptimWrapper, data: dict) -> Callable[[int], None]:
    """Forward, backward and update; draws of a round (samples, augmentation, dropped paths) are those of every row."""

    def run(i: int) -> None:
        torch.manual_seed(i)
        np.random.seed(i)
        model.train_step(copy.deepcopy(data), wrapper)

    return run


def benchmark(name: str, repeats: int) -> list[dict]:
    """All figures of a model, one record for each row."""
    model = stock_model(MODELS[name])
    model.backbone.init_cfg = None  # the one of Mask R-CNN would be downloaded
    model.init_weights()
    model.train()
    data, steps, groups = data_of(name), {}, {}
    for row, build in ROWS.items():
        own = copy.deepcopy(model)
        wrapper = build(own)
        steps[row], groups[row] = iteration(own, wrapper, data), len(wrapper.optimizer.param_groups)
    times = in_turns(steps, repeats, name)
    records = []
    for row, ms in medians(times).items():
        ratios = [100 * (own / stock - 1) for own, stock in zip(times[row], times[STOCK])]
        low, middle, high = statistics.quantiles(ratios, n=4) if repeats > 1 else ratios * 3
        overhead = dict(overhead_percent=middle, quartile_1=low, quartile_3=high)
        records.append(dict(model=name, row=row, ms=ms, **overhead, groups=groups[row]))
    return records


def main() -> None:
    args = arguments('Time of a whole training iteration', list(MODELS), 40, 'train_iteration.md and .csv')
    start(args.repeats)
    records = [record for name in args.models for record in benchmark(name, args.repeats)]
    result = Report('A whole training iteration', shlex.join(['python', *sys.argv]))
    for name in args.models:
        result.table(
            name,
            ['', 'milliseconds', 'overhead', 'its quartiles', 'groups'],
            [
                [
                    r['row'],
                    f'{r["ms"]:.0f}',
                    f'{r["overhead_percent"]:+.1f} %',
                    f'{r["quartile_1"]:+.1f} to {r["quartile_3"]:+.1f} %',
                    str(r['groups']),
                ]
                for r in records
                if r['model'] == name
            ],
            f'Medians over {args.repeats} rounds in turns, in one process. Overhead is the median over the rounds of '
            'the time above that of the first row in the same round, with the same draws; below 0 is faster.',
        )
    if args.out is not None:
        result.save(args.out, 'train_iteration', records)
        console.print(f'written: {args.out}/train_iteration.md, .csv')


if __name__ == '__main__':
    main()
