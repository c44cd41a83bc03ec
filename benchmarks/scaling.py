"""Memory and traffic of rollback in several processes: counted in two, reasoned for more and for larger models.

python benchmarks/scaling.py                    # two gloo processes in each mode: about 3 minutes
python benchmarks/scaling.py --out docs/en      # writes scaling.md and .csv
"""

import argparse
import json
import math
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from common import ADAMW, Report, olor_wrapper, stock_model
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.nn.parallel import DistributedDataParallel

MEASURED = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'
MODES = ('DDP', 'ZeRO', 'FSDP')
ANCHORS = ('none', 'fp32', 'bf16', 'file')
PARTS = ('parameters', 'gradients', 'states', 'anchors')
LARGE = {
    'ViT-L/16': 'mmpretrain::vision_transformer/vit-large-p16_64xb64_in1k.py',
    'Swin-L': 'mmpretrain::swin_transformer/swin-large_16xb64_in1k.py',
    'InternImage-L': 223_000_000,  # not in the OpenMMLab libraries; as its authors count it
}
PROCESSES = (1, 8, 64)
GiB = 1 << 30
INTRODUCTION = """This page says what memory and traffic rollback adds on several GPUs. In short: 4 bytes for each
pre-trained parameter where the states of the optimizer are, or 2, or none; and no traffic.

Rollback keeps one number for each pre-trained parameter, its anchor. In fp32 that is 4 bytes beside the 16 of weight,
gradient and the two states of AdamW. In bfloat16 it is 2 bytes. Where the checkpoint file itself is the anchor, it is
none. Anchors are where the states of the optimizer are: whole on every GPU with DDP, 1/N on each of N with ZeRO and
FSDP. So the additional memory falls with the number of GPUs, except with DDP.

Rollback communicates nothing: each process returns the weights, or pieces of them, that it updates. Every kind of
communication below carries the same with all kinds of anchors and without any (`tests/distributed/test_processes.py`
compares calls and numbers). Two other parts of olor_mm communicate:

- `SafeCheckpointHook` asks all processes in every iteration whether one got SIGTERM. That is one integer over gloo, on
  the CPU.
- With ZeRO a checkpoint gathers states and anchors in the first process, 12 bytes a parameter.

With `anchor_file` on GPUs, anchors are read from host memory in every step, 4 bytes a parameter over PCIe. A step of
ViT-B/16 then takes 63 ms instead of 1 ([one H200](benchmarks/gpu.md)). FSDP updates pieces of tensors, which are not in
a file. It keeps their anchors in memory, and a warning says so."""


# ---- one process of several ------------------------------------------------------------------------------------------


def wrapper_of(model: nn.Module, mode: str, anchors: str, weights: str):
    """The optimizer as a config would have it built."""
    options = dict(bf16=dict(anchor_dtype='bfloat16'), file=dict(anchor_file=weights)).get(anchors, {})
    if mode == 'ZeRO':
        options.update(type='ZeroRedundancyOptimizer', optimizer_type='AdamW')
    wrapper = olor_wrapper(model, **options)
    if anchors == 'none':
        for group in wrapper.optimizer.param_groups:
            group['rollback'] = 0.0
    return wrapper


def count(mode: str, anchors: str, weights: str) -> dict:
    """Bytes that this process holds after two steps, and what a step communicates."""
    torch.manual_seed(0)
    model = stock_model(MEASURED)
    model.load_state_dict(torch.load(weights, weights_only=True))
    if mode == 'FSDP':
        model = FSDP(model, use_orig_params=True, device_id=torch.device('cpu'))
    wrapper = wrapper_of(model, mode, anchors, weights)
    outer = DistributedDataParallel(model) if mode != 'FSDP' else model
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(distributed.get_rank()))

    def iterate() -> None:
        outer(images).square().sum().backward()
        wrapper.step()

    iterate()
    wrapper.zero_grad()
    with torch.profiler.profile(record_shapes=True) as profiler:
        iterate()
        distributed.barrier()
        time.sleep(1)  # gloo's threads note an event after those who wait for it have gone on
    traffic = Counter()
    for event in profiler.events():
        if event.name.startswith('gloo:') and event.name != 'gloo:barrier':
            traffic[event.name.removeprefix('gloo:')] += 4 * sum(map(math.prod, event.input_shapes))
    optimizer = getattr(wrapper.optimizer, 'optim', wrapper.optimizer)
    mapped = optimizer._files.entries
    parameters = list(model.parameters())
    size = dict.fromkeys(PARTS, 0)
    size['parameters'] = sum(p.nbytes for p in parameters)
    size['gradients'] = sum(p.grad.nbytes for p in parameters if p.grad is not None)
    for p, state in optimizer.state.items():
        for key, value in state.items():
            if torch.is_tensor(value) and not (key == 'anchor' and p in mapped):
                size['anchors' if key == 'anchor' else 'states'] += value.nbytes
    return dict(mode=mode, kind=anchors, **size, traffic=dict(traffic))


def one_process(mode: str, weights: str, out: Path) -> None:
    distributed.init_process_group('gloo')
    rows = [count(mode, anchors, weights) for anchors in ANCHORS]
    gathered = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, rows)
    if distributed.get_rank() == 0:
        mean = [
            dict(same[0], **{part: sum(row[part] for row in same) / len(same) for part in PARTS})
            for same in zip(*gathered)
        ]
        out.write_text(json.dumps(mean))
    os._exit(0)  # now and then gloo's threads abort an interpreter that ends


# ---- the report ------------------------------------------------------------------------------------------------------


def measured(folder: Path) -> list[dict]:
    """Rows of all modes, each by two processes."""
    weights = folder / 'weights.pth'
    torch.save(stock_model(MEASURED).state_dict(), weights)
    rows = []
    for mode in MODES:
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        several = ['-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_port', str(port)]
        options = ['--mode', mode, '--weights', str(weights), '--rows', str(folder / mode)]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        subprocess.run([sys.executable, *several, __file__, *options], check=True, env=environment)
        rows += json.loads((folder / mode).read_text())
    return rows


def estimated(mode: str, anchors: str, processes: int) -> dict[str, float]:
    """Bytes for each parameter: of a process, by part; and what it sends and receives in a step, in the usual rings."""
    whole, share, ring = 1.0, 1 / processes, (processes - 1) / processes
    parameters = share if mode == 'FSDP' else whole
    states = whole if mode == 'DDP' else share
    anchor = dict(none=0, fp32=4, bf16=2, file=4 if mode == 'FSDP' else 0)[anchors]  # pieces are not in a file
    # gradients reduced: twice the ring; parameters gathered: once
    rings = dict(DDP=2, ZeRO=3, FSDP=3)[mode]
    return dict(
        parameters=4 * parameters,
        gradients=4 * parameters,
        states=8 * states,
        anchors=anchor * states,
        traffic=4 * rings * ring,
    )


def held(mode: str, anchors: str, processes: int) -> float:
    """Bytes of a process for each parameter."""
    return sum(estimated(mode, anchors, processes)[part] for part in PARTS)


def number_of_parameters(model: str | int) -> int:
    return model if isinstance(model, int) else sum(p.numel() for p in stock_model(model).parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description='Memory and traffic of rollback in several processes')
    parser.add_argument('--out', type=Path, help='folder for scaling.md and .csv')
    parser.add_argument('--mode', choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument('--weights', help=argparse.SUPPRESS)
    parser.add_argument('--rows', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        one_process(args.mode, args.weights, args.rows)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder))
    report = Report('What rollback costs on one, eight and 64 GPUs', shlex.join(['python', *sys.argv]))
    report.blocks.append(INTRODUCTION)
    total = number_of_parameters(MEASURED)
    report.table(
        'Measured: DeiT-T in two processes',
        ['', *PARTS, 'estimate', 'all-reduce', 'broadcast', 'all-gather'],
        [
            [
                f'{row["mode"]}, anchors: {row["kind"]}',
                *(f'{row[part] / total:.2f}' for part in PARTS),
                f'{held(row["mode"], row["kind"], 2):.0f}',
                *(f'{row["traffic"].get(kind, 0) / total:.2f}' for kind in ('all_reduce', 'broadcast', 'all_gather')),
            ]
            for row in rows
        ],
        f'Bytes for each of the {total:,} parameters, after two steps of {ADAMW["type"]}; mean of both processes. The '
        'first four are what a process holds, the last three what it hands to communication in a step. *Estimate* is '
        'the sum of the first four by the formula of the tables below. Only the backbone has anchors, so they are not '
        'quite 4.',
    )
    for name, model in LARGE.items():
        parameters = number_of_parameters(model)
        report.table(
            f'{name}: {parameters / 1e6:.0f} million parameters, all of them pre-trained',
            ['GiB', *(f'{n} GPU{"s" * (n > 1)}' for n in PROCESSES), *(f'traffic, {n}' for n in PROCESSES[1:])],
            [
                [
                    f'{mode}, anchors: {anchors}',
                    *(f'{parameters * held(mode, anchors, n) / GiB:.2f}' for n in PROCESSES),
                    *(f'{parameters * estimated(mode, anchors, n)["traffic"] / GiB:.2f}' for n in PROCESSES[1:]),
                ]
                for mode in MODES
                for anchors in ANCHORS
            ],
            'Estimates: what each GPU holds for fp32 weights, their gradients, the two states of AdamW and anchors, '
            'without activations and buffers. Traffic is what it sends in a step, and receives.',
        )
    if args.out is not None:
        report.save(args.out, 'scaling', [dict(row, traffic=json.dumps(row['traffic'])) for row in rows])


if __name__ == '__main__':
    main()
