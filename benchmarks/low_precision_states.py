"""What AdamW-OLOR learns and how far it drifts if its two states are kept in bf16 or 8 bits instead of fp32.

python benchmarks/low_precision_states.py                  # 3 minutes on two cores; needs `make data`

A small network learns digits 0 to 4, then 5 to 9 with rollback. After every step the states are rounded to what the
narrower type can hold, as in an optimizer that computes in fp32 and stores them so. olor_mm has no such option:
docs/en/benchmarks/low_precision_states.md says why.
"""

import argparse
import copy
import statistics
from pathlib import Path

import cv2
import torch
from torch import Tensor, nn

from olor_mm.layers import rollback_groups
from olor_mm.optim import AdamWOLOR

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 256  # values that share a scale in 8 bits
ROUNDING = torch.Generator().manual_seed(0)  # so that batches are the same for all


def nearest(state: Tensor) -> None:
    """bf16, rounded to the nearest value."""
    state.copy_(state.bfloat16())


def stochastic(state: Tensor) -> None:
    """bf16, rounded up or down with the probabilities that keep the mean."""
    bits = state.view(torch.int32)
    bits.add_(torch.randint(1 << 16, bits.shape, dtype=torch.int32, generator=ROUNDING)).bitwise_and_(-(1 << 16))


def eight_bits(state: Tensor) -> None:
    """127 equal steps up to the largest value of each block, rounded away from 0, which a second moment must not be."""
    flat = state.view(-1)
    for block in flat.split(BLOCK):
        scale = block.abs().max() / 127
        if scale > 0:
            block.copy_((block.abs() / scale).ceil() * block.sign() * scale)


def eight_bits_of_root(state: Tensor) -> None:
    """The same of the square root, whose values are less far apart."""
    root = state.sqrt()
    eight_bits(root)
    state.copy_(root.square())


# what rounds the first and the second moment, and bytes a parameter of both
WAYS = {
    'fp32': (None, None, 8.0),
    'bf16, nearest': (nearest, nearest, 4.0),
    'bf16, stochastic': (stochastic, stochastic, 4.0),
    'bf16 first moment, fp32 second': (nearest, None, 6.0),
    '8 bits': (eight_bits, eight_bits_of_root, 2.0 + 8 / BLOCK),
}


def images(part: str, classes: range) -> tuple[Tensor, Tensor]:
    """Digits of these classes at 20 pixels, (N, 1, 20, 20), and their labels from 0."""
    files = [file for c in classes for file in sorted((ROOT / f'data/digits/{part}/{c}').glob('*.png'))]
    pixels = [cv2.resize(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), (20, 20)) for file in files]
    labels = torch.tensor([int(file.parent.name) - classes.start for file in files])
    return torch.stack([torch.from_numpy(image) for image in pixels])[:, None] / 128 - 1, labels


def network() -> nn.Module:
    def block(width: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(width, out, 3, stride=2, padding=1), nn.GroupNorm(4, out), nn.ReLU()]

    backbone = nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 64), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(backbone, nn.Linear(256, 5))


def train(model: nn.Module, optimizer, ways, data: tuple[Tensor, Tensor], steps: int) -> None:
    inputs, labels = data
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(labels), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
        for state in optimizer.state.values():
            for name, way in zip(('exp_avg', 'exp_avg_sq'), ways):
                if way:
                    way(state[name])


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    return 100 * (model(data[0]).argmax(1) == data[1]).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=400)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--level', type=float, default=0.01)
    args = parser.parse_args()
    torch.set_num_threads(1)
    old, new = range(5), range(5, 10)
    data = {(part, classes): images(part, classes) for part in ('train', 'test') for classes in (old, new)}
    runs = {name: [] for name in WAYS}
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        pretrained = network()
        train(pretrained, torch.optim.AdamW(pretrained.parameters(), lr=3e-3), (), data['train', old], args.steps)
        anchors = {name: p.detach().clone() for name, p in pretrained.named_parameters() if name.startswith('0.')}
        theta_0 = torch.cat([value.flatten() for value in anchors.values()])
        for name, (*ways, _) in WAYS.items():
            torch.manual_seed(100 + seed)
            model = copy.deepcopy(pretrained)
            model[1].reset_parameters()
            groups = rollback_groups(model, pretrained=anchors, max_level=args.level)
            train(model, AdamWOLOR(groups, lr=1e-3, weight_decay=0.05), ways, data['train', new], args.steps)
            moved = torch.cat([p.detach().flatten() for key, p in model.named_parameters() if key in anchors]) - theta_0
            learned = accuracy(model, data['test', new])
            model[1] = pretrained[1]
            kept = accuracy(model, data['test', old])
            fp32 = runs['fp32'][seed][3] if name != 'fp32' else moved
            drift, apart = 100 * moved.norm() / theta_0.norm(), 100 * (moved - fp32).norm() / fp32.norm()
            runs[name].append((learned, kept, drift.item(), moved, apart.item()))
    print('| states | bytes a parameter | new digits | old digits | drift | away from fp32, of the way moved |')
    print('|---|---:|---:|---:|---:|---:|')
    for name, results in runs.items():
        learned, kept, drift, _, apart = zip(*results)
        cells = [f'{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f} %' for v in (learned, kept, drift)]
        print(f'| {name} | {WAYS[name][2]:.2f} | {" | ".join(cells)} | {statistics.mean(apart):.0f} % |')


if __name__ == '__main__':
    main()
