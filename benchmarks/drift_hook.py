"""What DriftHook adds to a training iteration of stock models, with stock AdamW and with OLOR, on CPU.

python benchmarks/drift_hook.py                         # 3 minutes
python benchmarks/drift_hook.py --models swin-t --repeats 5
python benchmarks/drift_hook.py --out docs/en/benchmarks   # writes table and CSV
"""

import copy
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from types import SimpleNamespace

from common import Report, arguments, console, in_turns, olor_wrapper, start, stock_model, stock_wrapper
from mmengine.optim import OptimWrapper
from mmengine.visualization import Visualizer
from torch import nn
from train_iteration import MODELS, data_of, iteration

from olor_mm.engine import DriftHook

ROWS: dict[str, Callable[[nn.Module], OptimWrapper]] = {'AdamW': stock_wrapper, 'AdamW-OLOR': olor_wrapper}
INTERVAL = DriftHook().interval


def measurement(model: nn.Module, wrapper: OptimWrapper, visualizer: Visualizer) -> Callable[[int], None]:
    """One measurement of the hook, its file included, in a run where the backbone is pre-trained."""
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, visualizer=visualizer, iter=0, max_iters=1 << 30)
    hook = DriftHook(interval=1, pretrained=['backbone'])
    hook.before_run(runner)
    hook.before_train_iter(runner, 0)

    def run(i: int) -> None:
        runner.iter = i
        hook.after_train_iter(runner, i)

    return run


def benchmark(name: str, repeats: int, visualizer: Visualizer) -> list[dict]:
    """All figures of a model, one record for each optimizer."""
    model = stock_model(MODELS[name])
    model.backbone.init_cfg = None
    model.init_weights()
    model.train()
    data, steps = data_of(name), {}
    for row, build in ROWS.items():
        own = copy.deepcopy(model)
        wrapper = build(own)
        steps[row] = iteration(own, wrapper, data)
        steps[f'{row}, measured'] = measurement(own, wrapper, visualizer)
    times = in_turns(steps, repeats, name)
    records = []
    for row in ROWS:
        alone, measured = (statistics.median(times[key]) for key in (row, f'{row}, measured'))
        added = 100 * measured / (INTERVAL * alone)
        records.append(
            dict(model=name, row=row, ms=alone, measurement_ms=measured, interval=INTERVAL, added_percent=added)
        )
    return records


def main() -> None:
    args = arguments('What DriftHook adds to an iteration', list(MODELS), 20, 'drift_hook.md and .csv')
    start(args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        visualizer = Visualizer('drift', vis_backends=[dict(type='LocalVisBackend')], save_dir=folder)
        records = [record for name in args.models for record in benchmark(name, args.repeats, visualizer)]
    result = Report('What DriftHook adds to a training iteration', shlex.join(['python', *sys.argv]))
    result.table(
        f'One measurement every {INTERVAL} iterations, the default',
        ['', 'an iteration (ms)', 'a measurement (ms)', 'added on average'],
        [
            [
                f'{r["model"]}, {r["row"]}',
                f'{r["ms"]:.0f}',
                f'{r["measurement_ms"]:.1f}',
                f'{r["added_percent"]:+.2f} %',
            ]
            for r in records
        ],
        f'Medians over {args.repeats} rounds in turns, in one process. Swin-T with 4 images of 224 x 224, Mask R-CNN '
        'with one of 320 x 320. A measurement covers the backbone and writes scalars.json.',
    )
    if args.out is not None:
        result.save(args.out, 'drift_hook', records)
        console.print(f'written: {args.out}/drift_hook.md, .csv')


if __name__ == '__main__':
    main()
