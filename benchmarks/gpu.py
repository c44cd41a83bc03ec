"""Everything that needs a GPU: are the paths of the optimizers right there, how fast, and with how much memory.

python benchmarks/gpu.py                               # on one GPU, 2 minutes; needs torch and timm alone
python benchmarks/gpu.py --out docs/en/benchmarks      # writes gpu.md and gpu.json
python benchmarks/gpu.py --tune                        # also sizes of the kernel
python benchmarks/gpu.py --dry-run                     # on CPU: every step once, on small models
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from olor_mm.layers import rollback_groups
from olor_mm.optim import SGDOLOR, AdamOLOR, AdamWOLOR, Rollback, one_pass

HAS_GPU = torch.cuda.is_available()
DEVICE = 'cuda' if HAS_GPU else 'cpu'
MODELS = {'ViT-B/16': 'vit_base_patch16_224', 'ConvNeXt-T': 'convnext_tiny', 'ResNet-50': 'resnet50'}
BATCH = {'ViT-B/16': 128, 'ConvNeXt-T': 192, 'ResNet-50': 256}  # images, so many that the GPU does not wait for Python
SMALL = {'ViT, small': 'vit_tiny_patch16_224', 'ResNet, small': 'resnet18'}
SHAPES = ((1,), (7, 3), (300, 211), (64, 33, 3, 3), ((1 << 20) + 3,))
LEVEL, RATE, DECAY = 1e-2, 1e-4, 0.05


class TwoPassAdamW(Rollback, AdamW):
    """AdamWOLOR without its kernel: torch's fused step, and the rollback after it."""


class TwoPassSGD(Rollback, SGD):
    """SGDOLOR without its kernel."""


# --- is it right ---------------------------------------------------------------------------------------------------


def reference(
    start: list[Tensor], grads: list[list[Tensor] | None], rates: list[float], level: float, kind: str, budget: float
):
    """The rules of docs/en/method.md in float64, written out; a step without gradients was skipped."""
    values, mean, square, t = [p.double() for p in start], {}, {}, 0
    for step, rate in zip(grads, rates):
        if step is None:
            continue
        t += 1
        for i, (p, g, anchor) in enumerate(zip(values, step, start)):
            g = g.double()
            if kind == 'sgd':
                g = g + DECAY * p
                mean[i] = 0.9 * mean[i] + g if t > 1 else g
                learned = p - rate * mean[i]
            else:
                g = g + DECAY * p if kind == 'adam' else g
                mean[i] = 0.9 * mean.get(i, 0) + 0.1 * g
                square[i] = 0.999 * square.get(i, 0) + 0.001 * g * g
                update = mean[i] / (1 - 0.9**t) / ((square[i] / (1 - 0.999**t)).sqrt() + 1e-8)
                learned = p * (1 - rate * DECAY if kind == 'adamw' else 1) - rate * update
            w = level * rate / rates[0]
            if budget:
                w = ((learned - p).norm() / (budget * anchor.double().norm())).clamp(max=1)
            values[i] = learned - w * (learned - anchor.double())
    return values


def drawn(dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in SHAPES]
    return [v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for v in values]


def error_of(make: Callable, kind: str, dtype=torch.float32, drive=None, level=0.3, budget=0.0, steps=8) -> float:
    """Largest deviation from float64 after some steps, relative to the largest weight."""
    start = [0.02 * p for p in drawn(dtype, 0)]
    params = [nn.Parameter(p.clone()) for p in start]
    grads = [drawn(dtype, 1 + step) for step in range(steps)]
    rates = [1e-2 * (1 - 0.5 * step / steps) for step in range(steps)]
    strength = dict(rollback_drift=budget) if budget else dict(rollback=level)
    optimizer = make([dict(params=params[:2]), dict(params=params[2:])], lr=rates[0], **strength)
    done = (drive or plain)(optimizer, params, grads, rates)
    expected = reference(start, done, rates, level, kind, budget)
    error = max((p.detach().double() - e).abs().max() for p, e in zip(params, expected))
    return float(error / max(e.abs().max() for e in expected))


def plain(optimizer, params, grads, rates):
    for step, rate in zip(grads, rates):
        for group in optimizer.param_groups:
            group['lr'] = rate
        for p, g in zip(params, step):
            p.grad = g.clone()
        optimizer.step()
    return grads


def compiled(optimizer, params, grads, rates):
    step = torch.compile(optimizer.step)
    for gradients, rate in zip(grads, rates):
        for group in optimizer.param_groups:
            group['lr'].fill_(rate)
        for p, g in zip(params, gradients):
            p.grad = g.clone()
        step()
    return grads


def with_scaler(optimizer, params, grads, rates):
    """Gradients times the scale of a GradScaler, which finds an inf in two of the steps."""
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
    done = []
    for number, (step, rate) in enumerate(zip(grads, rates)):
        for group in optimizer.param_groups:
            group['lr'] = rate
        scaler.scale(torch.ones((), device=DEVICE))
        scale = scaler.get_scale()
        for p, g in zip(params, step):
            p.grad = g * scale
        if number in (2, 5):
            params[2].grad.view(-1)[3] = float('inf')
        scaler.step(optimizer)
        scaler.update()
        done.append(None if number in (2, 5) else step)
        if number not in (2, 5):  # gradients are left unscaled
            torch.testing.assert_close(params[2].grad, step[2])
    return done


def without_waiting(optimizer, params, grads, rates):
    """An error where a step, after the first, reads from the device; with a rate that changes, as under a schedule."""
    plain(optimizer, params, grads[:2], rates[:2])
    torch.cuda.set_sync_debug_mode('error')
    try:
        plain(optimizer, params, grads[2:], rates[2:])
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return grads


def in_graph(optimizer, params, grads, rates):
    """Three steps, then one that is captured in a CUDA graph and replayed, with the rate in a tensor."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    static = [g.clone() for g in grads[0]]
    for p, g in zip(params, static):
        p.grad = g

    def feed(number):
        for group in optimizer.param_groups:
            group['lr'].fill_(rates[number])
        for g, new in zip(static, grads[number]):
            g.copy_(new)

    with torch.cuda.stream(stream):
        for number in range(3):
            feed(number)
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for number in range(3, len(grads) - 1):
        feed(number)
        graph.replay()
    feed(len(grads) - 1)
    optimizer.step()  # outside of it again
    torch.cuda.synchronize()
    return grads


def of(cls, **options) -> Callable:
    def make(groups, lr, **more):
        lr = torch.tensor(lr, device=DEVICE) if options.get('capturable') else lr
        return cls(groups, lr=lr, weight_decay=DECAY, **more, **options)

    return make


def in_file(cls) -> Callable:
    def make(groups, **options):
        file = Path(tempfile.mkdtemp()) / 'weights.pth'
        torch.save({f'{i}.{j}': p.data for i, g in enumerate(groups) for j, p in enumerate(g['params'])}, file)
        return cls(groups, weight_decay=DECAY, anchor_file=str(file), **options)

    return make


def checks() -> dict[str, tuple[Callable[[], float], float]]:
    """Name of a path to what gives its error, and the bound of it: in 16 bits, half a unit of rounding in each step."""
    half, brain, momentum = dict(dtype=torch.float16), dict(dtype=torch.bfloat16), dict(momentum=0.9)
    single = 1e-5
    found = {
        'AdamWOLOR, one pass': (partial(error_of, of(AdamWOLOR), 'adamw'), single),
        'AdamOLOR, one pass': (partial(error_of, of(AdamOLOR), 'adam'), single),
        'SGDOLOR, one pass': (partial(error_of, of(SGDOLOR, **momentum), 'sgd'), single),
        'AdamWOLOR, one pass, level 1': (partial(error_of_level_one, of(AdamWOLOR)), 0.0),
        'AdamWOLOR, two passes, fused': (partial(error_of, of(TwoPassAdamW), 'adamw'), single),
        'AdamWOLOR, two passes, foreach': (partial(error_of, of(AdamWOLOR, foreach=True), 'adamw'), single),
        'AdamWOLOR, two passes, loop': (partial(error_of, of(AdamWOLOR, foreach=False, fused=False), 'adamw'), single),
        'bf16 parameters': (partial(error_of, of(AdamWOLOR), 'adamw', **brain), 8 * 2**-9),
        'fp16 parameters, SGDOLOR': (partial(error_of, of(SGDOLOR, **momentum), 'sgd', **half), 8 * 2**-12),
        'bf16 anchors': (partial(error_of, of(AdamWOLOR, anchor_dtype='bfloat16'), 'adamw'), 8 * 2**-9),
        "anchor_device='cpu'": (partial(error_of, of(AdamWOLOR, anchor_device='cpu'), 'adamw'), single),
        'anchor_file': (partial(error_of, in_file(AdamWOLOR), 'adamw'), single),
    }
    budget = dict(budget=4.0)  # of weights that are small here against a step
    found |= {
        'AdamWOLOR, budget': (partial(error_of, of(AdamWOLOR), 'adamw', **budget), single),
        # with L2 the gradient is small where the weight is large: more of it is rounding
        'AdamOLOR, budget': (partial(error_of, of(AdamOLOR), 'adam', **budget), 5 * single),
        'SGDOLOR, budget': (partial(error_of, of(SGDOLOR, **momentum), 'sgd', budget=30.0), single),
        'AdamWOLOR, budget, foreach': (partial(error_of, of(AdamWOLOR, foreach=True), 'adamw', **budget), single),
        'AdamWOLOR, budget, bf16 parameters': (partial(error_of, of(AdamWOLOR), 'adamw', **budget, **brain), 8 * 2**-9),
        "AdamWOLOR, budget, anchor_device='cpu'": (
            partial(error_of, of(AdamWOLOR, anchor_device='cpu'), 'adamw', **budget),
            single,
        ),
    }
    if HAS_GPU:
        capturable = dict(capturable=True)
        found |= {
            'budget, GradScaler': (partial(error_of, of(AdamWOLOR), 'adamw', drive=with_scaler, **budget), single),
            'budget, GradScaler, two passes': (
                partial(error_of, of(TwoPassAdamW), 'adamw', drive=with_scaler, **budget),
                single,
            ),
            'budget, CUDA graph': (
                partial(error_of, of(AdamWOLOR, **capturable), 'adamw', drive=in_graph, **budget),
                single,
            ),
            'budget, no waiting': (
                partial(error_of, of(AdamWOLOR), 'adamw', drive=without_waiting, **budget),
                single,
            ),
        }
        found |= {
            'GradScaler, an inf in two steps': (partial(error_of, of(AdamWOLOR), 'adamw', drive=with_scaler), single),
            'the same, two passes': (partial(error_of, of(TwoPassAdamW), 'adamw', drive=with_scaler), single),
            'the same, SGDOLOR': (partial(error_of, of(SGDOLOR, **momentum), 'sgd', drive=with_scaler), single),
            'CUDA graph': (partial(error_of, of(AdamWOLOR, **capturable), 'adamw', drive=in_graph), single),
            'CUDA graph, two passes': (
                partial(error_of, of(TwoPassAdamW, **capturable), 'adamw', drive=in_graph),
                single,
            ),
            'no waiting for the GPU': (partial(error_of, of(AdamWOLOR), 'adamw', drive=without_waiting), single),
            'torch.compile': (partial(error_of, of(AdamWOLOR, **capturable), 'adamw', drive=compiled), single),
        }
    return found


def error_of_level_one(make: Callable) -> float:
    """0 if weights stay at their anchors bit for bit."""
    params = [nn.Parameter(p) for p in drawn(torch.float32, 0)]
    optimizer = make([dict(params=params)], lr=1e-2, rollback=1.0, rollback_coupling='constant')
    plain(optimizer, params, [drawn(torch.float32, 1 + step) for step in range(4)], [1e-2] * 4)
    return float(max((p.detach() - start).abs().max() for p, start in zip(params, drawn(torch.float32, 0))))


# --- how fast ------------------------------------------------------------------------------------------------------


def milliseconds(step: Callable, count: int) -> float:
    """Of a step, by the clock of the device."""
    if not HAS_GPU:
        start = time.perf_counter()
        for _ in range(count):
            step()
        return 1e3 * (time.perf_counter() - start) / count
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(count):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / count


def in_turns(steps: dict[str, Callable], rounds: int, count: int) -> dict[str, float]:
    """Medians over rounds in which every step takes its turn, so that the state of the machine meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(milliseconds(step, count))
    return {name: statistics.median(values) for name, values in times.items()}


def host_milliseconds(step: Callable, count: int) -> float:
    """Of a step, until Python goes on: what the device may still work on is not waited for."""
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        step()
    taken = 1e3 * (time.perf_counter() - start) / count
    synchronize()
    return taken


def synchronize() -> None:
    if HAS_GPU:
        torch.cuda.synchronize()


def stock_groups(model: nn.Module) -> list[dict]:
    return [dict(params=[*model.parameters()])]


def layered(model: nn.Module) -> list[dict]:
    return rollback_groups(model, max_level=LEVEL)


def optimizers(names: Iterable[str] = ()) -> dict[str, Callable[[nn.Module], Optimizer]]:
    options = dict(lr=RATE, weight_decay=DECAY)
    momentum = dict(lr=RATE, momentum=0.9, weight_decay=DECAY)
    everyone = {
        'AdamW, fused': lambda m: AdamW(stock_groups(m), fused=True, **options),
        'AdamW, fused, a group per parameter': lambda m: AdamW(
            [dict(params=[p]) for p in m.parameters()], fused=True, **options
        ),
        'AdamW, foreach': lambda m: AdamW(stock_groups(m), foreach=True, **options),
        'AdamW, loop': lambda m: AdamW(stock_groups(m), foreach=False, fused=False, **options),
        'AdamWOLOR (one pass)': lambda m: AdamWOLOR(layered(m), **options),
        'AdamWOLOR, drift budget (kernels)': lambda m: AdamWOLOR(stock_groups(m), rollback_drift=0.05, **options),
        'AdamWOLOR, drift budget, two passes': lambda m: TwoPassAdamW(stock_groups(m), rollback_drift=0.05, **options),
        'AdamWOLOR, two passes, fused': lambda m: TwoPassAdamW(layered(m), **options),
        'AdamWOLOR, two passes, foreach': lambda m: AdamWOLOR(layered(m), foreach=True, **options),
        'AdamWOLOR, two passes, loop': lambda m: AdamWOLOR(layered(m), foreach=False, fused=False, **options),
        'AdamWOLOR, bf16 anchors': lambda m: AdamWOLOR(layered(m), anchor_dtype='bfloat16', **options),
        "AdamWOLOR, anchor_device='cpu'": lambda m: AdamWOLOR(layered(m), anchor_device='cpu', **options),
        'AdamWOLOR, anchor_file': lambda m: in_file(AdamWOLOR)(layered(m), lr=RATE),
        'SGD with momentum, fused': lambda m: SGD(stock_groups(m), fused=True, **momentum),
        'SGDOLOR (one pass)': lambda m: SGDOLOR(layered(m), **momentum),
        'SGDOLOR, two passes, fused': lambda m: TwoPassSGD(layered(m), fused=True, **momentum),
    }
    return {name: everyone[name] for name in names} if names else everyone


def made(name: str) -> nn.Module:
    """A model of timm with random weights and gradients."""
    with torch.device(DEVICE):
        model = timm.create_model(name)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return model


def step_times(name: str, rounds: int, count: int) -> list[dict]:
    """Time and memory of the step of every optimizer on the parameters of a model."""
    rows, steps = [], {}
    for label, make in optimizers().items():
        model = made(name)
        before = torch.cuda.memory_allocated() if HAS_GPU else 0
        optimizer = make(model)
        for _ in range(3):  # states, anchors and kernels are made
            optimizer.step()
        after = torch.cuda.memory_allocated() if HAS_GPU else 0
        steps[label] = optimizer.step
        size = sum(p.numel() for p in model.parameters())
        rows.append(dict(optimizer=label, parameters=size, bytes_per_parameter=(after - before) / size))
    slow = ('loop', 'cpu', 'file')
    times = {}
    for labels, n in (
        ([label for label in steps if not label.endswith(slow) and "'cpu'" not in label], count),
        ([label for label in steps if label.endswith(slow) or "'cpu'" in label], max(count // 5, 1)),
    ):
        times |= in_turns({label: steps[label] for label in labels}, rounds, n)
    for row in rows:
        label = row['optimizer']
        unit = 'SGD with momentum, fused' if label.startswith('SGD') else 'AdamW, fused'
        row |= dict(ms=times[label], ratio=times[label] / times[unit])
        row |= dict(host_ms=host_milliseconds(steps[label], 5), unit=unit)
    return rows


def iteration_times(name: str, batch: int, rounds: int, count: int) -> list[dict]:
    """Time of a whole training iteration, as users have it: AMP, and gradients set to None after every step."""
    rows = []
    for dtype in ('bfloat16', 'float16') if HAS_GPU else ('bfloat16',):
        steps = {}
        again = 'AdamW, fused, once more'  # how much is chance
        labels = ('AdamWOLOR (one pass)', 'AdamWOLOR, two passes, fused', 'AdamWOLOR, drift budget (kernels)')
        for label in ('AdamW, fused', again, *labels):
            torch.manual_seed(0)
            model = made(name).to(memory_format=torch.channels_last).train()
            model.zero_grad()
            images = torch.randn(batch, 3, 224, 224, device=DEVICE).to(memory_format=torch.channels_last)
            targets = torch.randint(0, 1000, (batch,), device=DEVICE)
            [make] = optimizers(['AdamW, fused' if label == again else label]).values()
            optimizer = make(model)
            scaler = torch.amp.GradScaler(DEVICE, enabled=dtype == 'float16')

            def step(model=model, images=images, targets=targets, optimizer=optimizer, scaler=scaler, dtype=dtype):
                with torch.autocast(DEVICE, getattr(torch, dtype)):
                    loss = nn.functional.cross_entropy(model(images), targets)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()

            for _ in range(3):
                step()
            steps[label] = step
        times = in_turns(steps, rounds, count)
        rows += [
            dict(optimizer=label, amp=dtype, batch=batch, ms=ms, ratio=ms / times['AdamW, fused'])
            for label, ms in times.items()
        ]
    return rows


def graph_times(name: str, rounds: int, count: int) -> list[dict]:
    """Time of a step that is replayed as a CUDA graph: that of the device alone, without Python."""
    options = dict(lr=RATE, weight_decay=DECAY, capturable=True, fused=True)
    makers = {
        'AdamW, fused': lambda m: AdamW(stock_groups(m), **options),
        'AdamWOLOR (one pass)': lambda m: AdamWOLOR(layered(m), **options),
        'AdamWOLOR, drift budget (kernels)': lambda m: AdamWOLOR(stock_groups(m), rollback_drift=0.05, **options),
        'AdamWOLOR, two passes, fused': lambda m: TwoPassAdamW(layered(m), **options),
        'AdamWOLOR, bf16 anchors': lambda m: AdamWOLOR(layered(m), anchor_dtype='bfloat16', **options),
    }
    graphs, replays = [], {}
    for label, make in makers.items():
        optimizer = make(made(name))
        for _ in range(3):
            optimizer.step()
        synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        graphs.append((graph, optimizer))
        replays[label] = graph.replay
    times = in_turns(replays, rounds, count)
    return [dict(optimizer=label, ms=ms, ratio=ms / times['AdamW, fused']) for label, ms in times.items()]


def tune(name: str) -> list[dict]:
    """The launch of AdamWOLOR's kernel with other sizes."""
    from olor_mm.optim import triton_kernels

    model, rows = made(name), []
    for block in (1024, 2048, 4096):
        for chunk in (2, 4, 8, 16):
            for warps in (4, 8, 16):
                triton_kernels.BLOCK, triton_kernels.CHUNK, triton_kernels.WARPS = block, chunk, warps
                optimizer = AdamWOLOR(layered(model), lr=RATE, weight_decay=DECAY)
                for _ in range(3):
                    optimizer.step()
                [(launch, _)] = optimizer._plan.launches
                again = partial(launch, *launch.content, None, None)
                rows.append(dict(block=block, chunk=chunk, warps=warps, ms=in_turns({'': again}, 5, 20)['']))
    return sorted(rows, key=lambda row: row['ms'])


def copy_bandwidth() -> float:
    """TB/s of a copy on the device, bytes read and written."""
    source = torch.randn(1 << 28 if HAS_GPU else 1 << 20, device=DEVICE)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() * 4 / in_turns({'': lambda: target.copy_(source)}, 5, 5)[''] / 1e9


# --- report --------------------------------------------------------------------------------------------------------


def table(rows: list[dict], columns: dict[str, str]) -> str:
    def cell(value) -> str:
        return (
            f'{value:.3g}'
            if isinstance(value, float) and value < 100
            else f'{value:,.0f}'
            if isinstance(value, (int, float))
            else str(value)
        )

    lines = ['| ' + ' | '.join(columns.values()) + ' |', '|' + ' --- |' * len(columns)]
    lines += ['| ' + ' | '.join(cell(row[key]) for key in columns) + ' |' for row in rows]
    return '\n'.join(lines)


def page(found: dict) -> str:
    machine = found['machine']
    parts = [
        '# On a GPU',
        f'Printed by `python benchmarks/gpu.py --out docs/en/benchmarks` on one {machine["card"]}, torch '
        f'{machine["torch"]}, Triton {machine["triton"]}, Python {machine["python"]}; a copy on the device moves '
        f'{machine["copy_tb_per_s"]:.2f} TB/s. Times are medians of rounds in which all take turns. A step '
        'by itself waits for Python more than for the GPU; in training, Python is ahead of it.',
        '## Is it right',
        'The largest deviation from the rule in float64 after 8 steps, relative to the largest weight.',
        table(found['checks'], dict(path='path', error='error', bound='bound', verdict='')),
        '## A step',
    ]
    columns = dict(optimizer='optimizer', ms='ms', ratio='ratio to torch, fused', host_ms='ms of Python')
    columns |= dict(bytes_per_parameter='bytes a parameter, states and anchors')
    for name, rows in found['steps'].items():
        parts += [f'### {name}, {rows[0]["parameters"] / 1e6:.1f} million parameters', table(rows, columns)]
    parts += ['## The same without Python', 'As CUDA graphs, with `capturable=True`.']
    for name, rows in found['graphs'].items():
        parts += [f'### {name}', table(rows, dict(optimizer='optimizer', ms='ms', ratio='ratio to torch, fused'))]
    parts.append('## A training iteration')
    for name, rows in found['iterations'].items():
        parts += [
            f'### {name}',
            table(rows, dict(amp='AMP', batch='images', optimizer='optimizer', ms='ms', ratio='ratio')),
        ]
    if found.get('tune'):
        parts += [
            '## Sizes of the kernel',
            table(found['tune'], dict(block='block', chunk='blocks a program', warps='warps', ms='ms')),
        ]
    return '\n\n'.join(parts) + '\n'


def machine() -> dict:
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = 'none'
    card = torch.cuda.get_device_name() if HAS_GPU else f'CPU ({platform.machine()}), a dry run'
    return dict(card=card, torch=torch.__version__, triton=version, python=platform.python_version())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='folder for gpu.md and gpu.json')
    parser.add_argument('--tune', action='store_true', help='also time other sizes of the kernel')
    parser.add_argument('--dry-run', action='store_true', help='every step once, on small models')
    args = parser.parse_args()
    if not HAS_GPU and not args.dry_run:
        parser.error('no GPU is here; --dry-run goes through every step on CPU')
    began = time.perf_counter()
    rounds, count = (1, 1) if args.dry_run else (7, 20)
    found: dict = dict(
        machine=dict(machine(), copy_tb_per_s=copy_bandwidth()), checks=[], steps={}, graphs={}, iterations={}
    )
    print(found['machine'], 'kernels:', one_pass._kernels(DEVICE), flush=True)
    for name, (run, bound) in checks().items():
        try:
            error = run()
            verdict = 'right' if error <= bound else 'WRONG'
        except Exception as problem:
            error, verdict = float('nan'), f'FAILED: {type(problem).__name__}: {str(problem)[:300]}'
        found['checks'].append(dict(path=name, error=error, bound=bound, verdict=verdict))
        print(f'{time.perf_counter() - began:6.1f} s  {name}: {error:.2g} (<= {bound:.1g}) {verdict}', flush=True)
    for name, model in (SMALL if args.dry_run else MODELS).items():
        found['steps'][name] = step_times(model, rounds, count)
        print(f'{time.perf_counter() - began:6.1f} s', name, flush=True)
        for row in found['steps'][name]:
            print(
                '   ', ', '.join(f'{k} {v:.4g}' if isinstance(v, float) else str(v) for k, v in row.items()), flush=True
            )
    for name, model in MODELS.items() if HAS_GPU else ():
        found['graphs'][name] = graph_times(model, rounds, count)
        print(f'{time.perf_counter() - began:6.1f} s', name, *found['graphs'][name], sep='\n    ', flush=True)
    if args.tune:
        found['tune'] = tune(next(iter(MODELS.values())))
        print(*found['tune'][:6], *found['tune'][-2:], sep='\n', flush=True)
    for name, model in (SMALL if args.dry_run else MODELS).items():
        small = (2, 1, 1) if args.dry_run else (BATCH[name], 12, 2)
        found['iterations'][name] = iteration_times(model, *small)
        print(f'{time.perf_counter() - began:6.1f} s', name, *found['iterations'][name], sep='\n    ', flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'gpu.json').write_text(json.dumps(found, indent=1) + '\n')
        (args.out / 'gpu.md').write_text(page(found))
    return int(any(row['verdict'] != 'right' for row in found['checks']))


if __name__ == '__main__':
    os.environ.setdefault('PYTORCH_CUDA_ALLOC_CONF', 'expandable_segments:False')
    raise SystemExit(main())
