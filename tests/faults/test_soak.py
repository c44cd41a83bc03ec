"""Long runs of an optimizer: memory, weights and anchors after 20,000 steps; a few hundred of them in the quick tests."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import ReferenceAdam, ReferenceSGD, warmup_cosine
from torch import nn

from olor_mm.optim import SGDOLOR, AdamWOLOR

STEPS = 20_000
WIDTH, LR, LEVEL = 32, 1e-2, 0.02
MiB = 1 << 20


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGESIZE')


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(step)
    inputs = draws.normal(size=(8, WIDTH))
    return inputs, np.sin(inputs[:, :2] * 2) + draws.normal(size=(8, 2))


WAYS = {
    'AdamW in one pass': (AdamWOLOR, ReferenceAdam, {}),
    'AdamW in two passes': (AdamWOLOR, ReferenceAdam, dict(foreach=False, fused=False)),
    'SGD with momentum': (SGDOLOR, ReferenceSGD, dict(momentum=0.9)),
}


@pytest.mark.parametrize('steps', [300, pytest.param(STEPS, marks=pytest.mark.slow)])
@pytest.mark.parametrize('way', WAYS)
def test_soak(way, steps, tmp_path, record_property):
    """A linear model that is fitted to noise; the float64 rule makes its own way with its own gradients."""
    optimizer_class, reference_class, options = WAYS[way]
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 2)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = optimizer_class(model.parameters(), lr=LR, weight_decay=0.05, rollback=LEVEL, **options)
    expected = {
        name: reference_class(
            p.numpy(), LEVEL, LR, 'lr', weight_decay=0.05, **{k: v for k, v in options.items() if k == 'momentum'}
        )
        for name, p in start.items()
    }
    peaks = []
    for step in range(steps):
        lr = float(warmup_cosine(step, LR, steps // 40, steps))
        inputs, targets = batch(step)
        optimizer.param_groups[0]['lr'] = lr
        optimizer.zero_grad()
        (
            model(torch.tensor(inputs, dtype=torch.float32)) - torch.tensor(targets, dtype=torch.float32)
        ).square().mean().backward()
        optimizer.step()

        errors = 2 * (inputs @ expected['weight'].theta.T + expected['bias'].theta - targets) / targets.size
        expected['weight'].step(errors.T @ inputs, lr)
        expected['bias'].step(errors.sum(0), lr)

        if (step + 1) % (steps // 10) == 0:
            torch.save(optimizer.state_dict(), tmp_path / 'state.pth')
            saved = torch.load(tmp_path / 'state.pth', weights_only=True)
            optimizer.load_state_dict(saved)
            for p, state in zip(start.values(), saved['state'].values()):
                assert torch.equal(state['anchor'], p)
            del saved
            peaks.append(resident() if steps == STEPS else 0)  # a short run ends while torch and numpy warm up
    grown = max(peaks[1:]) - peaks[0]  # since the first save
    off = max(float(np.abs(p.detach().numpy() - expected[name].theta).max()) for name, p in model.named_parameters())
    moved = max(float((p.detach() - start[name]).abs().max()) for name, p in model.named_parameters())
    record_property(
        f'{steps:,} steps of {way}',
        f'weights within {off:.1g} of float64, memory +{grown / MiB:.2f} MiB, anchors as at the start',
    )
    assert moved > 1e-2
    assert off <= 1e-5
    assert grown <= MiB
    assert all(torch.equal(optimizer.state[p]['anchor'], start[name]) for name, p in model.named_parameters())
