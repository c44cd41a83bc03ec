"""Time and memory of one optimizer step on the parameters of real models, on CPU.

python benchmarks/optimizer_step.py                          # all models: 14 minutes, about 20 GiB
python benchmarks/optimizer_step.py --models swin-t --repeats 5
python benchmarks/optimizer_step.py --out docs/en/benchmarks    # writes table, plot and CSV
"""

import copy
import ctypes
import multiprocessing
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib
import psutil
import torch
from common import ADAMW, Report, arguments, console, in_turns, medians, olor_wrapper, start, stock_model, stock_wrapper
from torch import nn
from torch.optim import Optimizer

from olor_mm.optim import AdamWOLOR, NAdamOLOR, Rollback

matplotlib.use('Agg')
import matplotlib.pyplot as plt

MODELS = {
    'vit-b16': 'mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py',
    'swin-t': 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
    'convnext-t': 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
    'resnet50': 'mmpretrain::resnet/resnet50_8xb32_in1k.py',
}
OPTIONS = {key: value for key, value in ADAMW.items() if key != 'type'}
UNIT = 'AdamW, fused, one group'
STOCK = "AdamW, MMEngine's default groups"
OURS = 'OLOR as the constructor builds it (one pass)'
BF16 = 'OLOR, anchor_dtype=bfloat16'
FILE = 'OLOR, anchor_file'
LOOP = 'OLOR as a textbook loop'
NADAM = 'NAdam, loop'
COMPARED = (UNIT, STOCK, OURS, LOOP)


class TwoPass(Rollback, torch.optim.AdamW):
    """AdamWOLOR without its kernel: torch's fused step, and the rollback after it."""


class TextbookOLOR(Optimizer):
    """AdamW with rollback as papers write it down: one parameter, one line of the formula at a time."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, (beta1, beta2) = group['lr'], group['betas']
            for p in group['params']:
                state = self.state[p]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p), anchor=p.clone())
                state['step'] += 1
                mean, square = state['exp_avg'], state['exp_avg_sq']
                mean.mul_(beta1).add_(p.grad, alpha=1 - beta1)
                square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                mean_hat = mean / (1 - beta1 ** state['step'])
                square_hat = square / (1 - beta2 ** state['step'])
                p.mul_(1 - lr * group['weight_decay'])
                p.sub_(lr * mean_hat / (square_hat.sqrt() + group['eps']))
                discrepancy = p - state['anchor']
                p.sub_(group['rollback'] * discrepancy)


def adamw_rows(weights: str) -> dict[str, Callable[[nn.Module], Optimizer]]:
    """What is measured; ``weights`` is the file of ``anchor_file``."""
    textbook = dict(OPTIONS, betas=(0.9, 0.999), eps=1e-8, rollback=1e-2)
    return {
        UNIT: lambda model: torch.optim.AdamW(model.parameters(), fused=True, **OPTIONS),
        'AdamW, foreach, one group': lambda model: torch.optim.AdamW(model.parameters(), foreach=True, **OPTIONS),
        'AdamW, loop, one group': lambda model: torch.optim.AdamW(model.parameters(), foreach=False, **OPTIONS),
        STOCK: lambda model: stock_wrapper(model).optimizer,
        OURS: lambda model: olor_wrapper(model).optimizer,
        'OLOR, one group': lambda model: AdamWOLOR(model.parameters(), rollback=1e-2, **OPTIONS),
        'OLOR, drift budget': lambda model: olor_wrapper(model, max_drift=0.05).optimizer,
        'OLOR, drift budget, no kernel': lambda model: olor_wrapper(model, max_drift=0.05, type=TwoPass).optimizer,
        'OLOR, two passes': lambda model: olor_wrapper(model, type=TwoPass).optimizer,
        BF16: lambda model: olor_wrapper(model, anchor_dtype='bfloat16').optimizer,
        FILE: lambda model: olor_wrapper(model, anchor_file=weights).optimizer,
        'OLOR, foreach=True': lambda model: olor_wrapper(model, foreach=True).optimizer,
        'OLOR, foreach=False, fused=False': lambda model: olor_wrapper(model, foreach=False, fused=False).optimizer,
        LOOP: lambda model: TextbookOLOR(model.parameters(), textbook),
    }


def nadam_rows() -> dict[str, Callable[[nn.Module], Optimizer]]:
    """An optimizer without a fused kernel."""

    def olor(foreach: bool) -> Callable[[nn.Module], Optimizer]:
        return lambda model: olor_wrapper(model, type=NAdamOLOR, weight_decay=0.0, foreach=foreach).optimizer

    return {
        NADAM: lambda model: torch.optim.NAdam(model.parameters(), lr=1e-4, foreach=False),
        'NAdam, foreach': lambda model: torch.optim.NAdam(model.parameters(), lr=1e-4, foreach=True),
        'NAdam-OLOR, foreach=False': olor(False),
        'NAdam-OLOR, foreach=True': olor(True),
    }


def with_gradients(model: nn.Module) -> nn.Module:
    """The model with random gradients; copies of it share their memory."""
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    return model


def model_of(name: str, weights: str) -> nn.Module:
    """The model with the weights of a file, and random gradients."""
    model = with_gradients(stock_model(MODELS[name]))
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def measure(model: nn.Module, rows: dict, repeats: int, what: str) -> tuple[dict[str, float], dict[str, Optimizer]]:
    """Median milliseconds of a step of every row, and the optimizers after it."""
    optimizers = {}
    for name, build in rows.items():
        own = copy.deepcopy(model)
        for p, source in zip(own.parameters(), model.parameters()):
            p.grad = source.grad  # no optimizer here writes to it, and ViT-B needs the memory
        optimizers[name] = build(own)
    steps = {name: lambda _, optimizer=optimizer: optimizer.step() for name, optimizer in optimizers.items()}
    return medians(in_turns(steps, repeats, what)), optimizers


def held(optimizer: Optimizer) -> int:
    """Bytes of the tensors in its state; an anchor of a file stands there as the name of its place."""
    states = optimizer.state_dict()['state'].values()
    return sum(t.numel() * t.element_size() for s in states for t in s.values() if isinstance(t, torch.Tensor))


def rolled_back(optimizer: Optimizer) -> int:
    """The number of elements that have an anchor."""
    return sum(p.numel() for p, state in optimizer.state.items() if state.get('anchor') is not None)


def resident(model_name: str, weights: str, row: str) -> tuple[int, int, int]:
    """Bytes of resident memory that the kernels take, an optimizer after four steps, and its peak in the fourth.

    To be called in a process of its own, so that no row takes over what another one left to the allocator.
    """
    start(1)
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: tensors go back to the system when they are freed
    process = psutil.Process()
    before = process.memory_info().rss
    tiny = nn.Linear(8, 8)
    warm = AdamWOLOR(with_gradients(tiny).parameters(), rollback=1e-2, **OPTIONS)
    for _ in range(3):  # loads numba; once, whatever the model
        warm.step()
    kernels = process.memory_info().rss - before
    model = model_of(model_name, weights)
    before = process.memory_info().rss
    optimizer = adamw_rows(weights)[row](model)
    for _ in range(3):
        optimizer.step()
    Path('/proc/self/clear_refs').write_text('5')  # Linux: the peak counts from here
    optimizer.step()
    lines = Path('/proc/self/status').read_text().splitlines()
    peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith('VmHWM'))
    return kernels, process.memory_info().rss - before, peak - before


def alone(model_name: str, weights: str, repeats: int) -> dict[str, float]:
    """Median milliseconds of a step of the few rows that OLOR is compared with.

    To be called in a process of its own: the C library asks the system for large temporaries anew each time, until
    larger ones have been freed, as foreach does. Optimizers that make temporaries are the slower for it.
    """
    start(repeats)
    model = with_gradients(stock_model(MODELS[model_name]))
    rows = {name: build for name, build in adamw_rows(weights).items() if name in COMPARED}
    return measure(model, rows, repeats, f'{model_name}, on their own')[0]


def apart(function: Callable, *arguments):
    """The result of a function that was called in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *arguments).result()


def timed(model_name: str, weights: str, repeats: int) -> list[dict]:
    """Times, groups and states of all rows of a model.

    To be called in a process of its own: for ViT-B the optimizers take 19 GiB, which the allocator would not give back.
    """
    start(repeats)
    model = model_of(model_name, weights)
    times, optimizers = measure(model, adamw_rows(weights), repeats, f'{model_name}, AdamW')
    records = [
        dict(model=model_name, row=name, ms=ms, ratio=ms / times[UNIT], groups=len(optimizers[name].param_groups))
        for name, ms in times.items()
    ]
    for record in records:
        count = rolled_back(optimizers[record['row']])
        extra = held(optimizers[record['row']]) - held(optimizers[UNIT])
        record.update(rolled_back=count, state_bytes=extra / count if count else None)
    del optimizers
    nadam, optimizers = measure(model, nadam_rows(), repeats, f'{model_name}, NAdam')
    for name, ms in nadam.items():
        groups = len(optimizers[name].param_groups)
        records.append(dict(model=model_name, row=name, ms=ms, ratio=ms / nadam[NADAM], groups=groups))
    return records


def benchmark(model_name: str, repeats: int) -> list[dict]:
    """All figures of a model, one record for each row."""
    with tempfile.TemporaryDirectory() as folder:
        weights = os.path.join(folder, 'weights.pth')
        torch.save(stock_model(MODELS[model_name]).state_dict(), weights)
        records = apart(timed, model_name, weights, repeats)
        times = apart(alone, model_name, weights, repeats)
        kernels, *stock = apart(resident, model_name, weights, UNIT)
        for record in records:
            record['ms_alone'] = times.get(record['row'])
            if record['row'] in (OURS, BF16, FILE):
                _, *grown = apart(resident, model_name, weights, record['row'])
                after, peak = ((ours - theirs) / record['rolled_back'] for ours, theirs in zip(grown, stock))
                record.update(resident_bytes=after, resident_bytes_in_step=peak, kernels_mib=kernels / 2**20)
    return records


def report(command: str, repeats: int, records: list[dict]) -> Report:
    """All tables."""
    models = list(dict.fromkeys(record['model'] for record in records))
    of = {(record['model'], record['row']): record for record in records}
    result = Report('One optimizer step', command)

    def table(title: str, rows: dict[str, Callable[[str], str]], note: str) -> None:
        result.table(title, ['', *models], [[name, *map(cell, models)] for name, cell in rows.items()], note)

    def ratios(unit: str, names: list[str]) -> dict[str, Callable[[str], str]]:
        rows = {name: lambda model, name=name: f'{of[model, name]["ratio"]:.2f}' for name in names}
        return {**rows, f'milliseconds of 1.00 ({unit})': lambda model: f'{of[model, unit]["ms"]:.1f}'}

    def figure(name: str, key: str, digits: int) -> Callable[[str], str]:
        return lambda model: f'{of[model, name][key]:.{digits}f}'

    table(
        'Time of a step',
        ratios(UNIT, list(adamw_rows(''))),
        f'Ratios of medians over {repeats} rounds of steps in turns, in one process; random gradients, fp32, CPU.',
    )
    against = {}
    for key, where in dict(ms='among all rows', ms_alone='on their own').items():
        for name in (UNIT, STOCK, LOOP):
            against[f'{name}; {where}'] = (
                lambda model, name=name, key=key: f'{of[model, OURS][key] / of[model, name][key]:.2f}'
            )
    table(
        'OLOR as the constructor builds it, against',
        against,
        'Among all rows: the medians above. On their own: those of a new process with these four rows alone, in which '
        'the C library returns the memory of large temporaries to the system after each use.',
    )
    table(
        'Without a fused kernel: NAdam',
        ratios(NADAM, list(nadam_rows())),
        'In the same way; this is why foreach is left to torch, which has it off on CPU.',
    )
    table(
        'Parameter groups',
        {name: figure(name, 'groups', 0) for name in (STOCK, OURS)},
        'The head has level 0 and groups of its own; norm layers have no weight decay, and so groups of their own.',
    )
    memory = {f'{name}: state': figure(name, 'state_bytes', 3) for name in (OURS, BF16, FILE)}
    memory |= {f'{name}: resident': figure(name, 'resident_bytes', 3) for name in (OURS, BF16, FILE)}
    memory |= {f'{name}: peak in a step': figure(name, 'resident_bytes_in_step', 3) for name in (OURS, BF16, FILE)}
    table(
        'Memory',
        memory,
        f'Bytes per rolled-back fp32 parameter above {UNIT}. "state" adds up the tensors of the optimizer. "resident" '
        'is the resident memory (RSS) of a process of its own after its fourth step, "peak" that within this step. The '
        f'kernels were loaded before, and numba took {max(r.get("kernels_mib", 0) for r in records):.0f} MiB for it.',
    )
    return result


def plot(records: list[dict], path: Path) -> None:
    """Ratios of the AdamW rows as bars."""
    names = list(adamw_rows(''))[::-1]
    models = list(dict.fromkeys(record['model'] for record in records))
    height = 0.8 / len(models)
    figure, axes = plt.subplots(figsize=(9, 7))
    for i, model in enumerate(models):
        ratio = {record['row']: record['ratio'] for record in records if record['model'] == model}
        places = [y + 0.4 - (i + 0.5) * height for y in range(len(names))]
        bars = axes.barh(places, [ratio[name] for name in names], height, label=model)
        axes.bar_label(bars, fmt='%.2f', fontsize=6, padding=2)
    axes.axvline(1, color='black', linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(f'time of a step, as a multiple of {UNIT}')
    axes.legend(loc='upper right')
    axes.spines[['top', 'right']].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    args = arguments('Time and memory of one optimizer step', list(MODELS), 25, 'optimizer_step.md, .csv and .png')
    start(args.repeats)
    records = [record for name in args.models for record in benchmark(name, args.repeats)]
    result = report(shlex.join(['python', *sys.argv]), args.repeats, records)
    if args.out is not None:
        keys = dict.fromkeys(key for record in records for key in record)
        result.save(args.out, 'optimizer_step', [{key: record.get(key) for key in keys} for record in records])
        plot(records, args.out / 'optimizer_step.png')
        console.print(f'written: {args.out}/optimizer_step.md, .csv, .png')


if __name__ == '__main__':
    main()
