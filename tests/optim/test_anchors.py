"""Where anchors lie: dtype, device, the file they came from; and how much memory that takes."""

import copy
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from olor_mm.optim import SGDOLOR, AdamWOLOR
from olor_mm.optim.anchors import fetched

SETTINGS = dict(lr=1e-2, rollback=0.1, rollback_coupling='constant')


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def train(net, optimizer, steps) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(4, 6, generator=generator)).square().sum().backward()
        optimizer.step()


def bytes_of_anchors(optimizer) -> int:
    return sum(s['anchor'].nbytes for s in optimizer.state.values() if s.get('anchor') is not None)


@pytest.mark.parametrize('dtype', ['bfloat16', torch.bfloat16, 'float16', 'float64'])
def test_anchors_take_their_dtype_and_keep_it_through_a_round_trip(dtype):
    net = model()
    start = copy.deepcopy(net)
    optimizer = AdamWOLOR(net.parameters(), anchor_dtype=dtype, **SETTINGS)
    train(net, optimizer, range(3))
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    assert bytes_of_anchors(optimizer) == sum(p.numel() for p in net.parameters()) * wanted.itemsize
    other = copy.deepcopy(net)
    resumed = AdamWOLOR(other.parameters(), anchor_dtype=dtype, **SETTINGS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(start.parameters(), other.parameters()):
        assert torch.equal(resumed.state[q]['anchor'], p.detach().to(wanted))
        assert resumed.state[q]['anchor'].dtype == wanted
    train(net, optimizer, range(3, 6))
    train(other, resumed, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters()))


def test_a_float32_anchor_of_a_bfloat16_parameter_is_not_rounded_by_a_round_trip():
    p = nn.Parameter(torch.randn(50).bfloat16())
    optimizer = SGDOLOR([p], anchor_dtype='float32', **SETTINGS)
    p.grad = torch.randn(50).bfloat16()
    optimizer.step()
    optimizer.state[p]['anchor'].add_(1e-4)  # a value that bfloat16 does not have
    kept = optimizer.state[p]['anchor'].clone()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.state[p]['anchor'].dtype == torch.float32
    assert torch.equal(optimizer.state[p]['anchor'], kept)


def test_bfloat16_anchors_pull_to_within_2_to_the_minus_8_of_the_value():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(10_000))
    start = p.detach().clone()
    optimizer = SGDOLOR([p], lr=0.1, rollback=1.0, rollback_coupling='constant', anchor_dtype='bfloat16')
    p.grad = torch.randn(10_000)
    optimizer.step()
    off = ((p.detach() - start).abs() / start.abs()).max()
    assert 2**-9 < off <= 2**-8


def test_a_group_has_its_own_place():
    net = model()
    groups = [dict(params=net[0].parameters(), anchor_dtype='bfloat16'), dict(params=net[2].parameters())]
    optimizer = AdamWOLOR(groups, **SETTINGS)
    train(net, optimizer, range(1))
    assert optimizer.state[net[0].weight]['anchor'].dtype == torch.bfloat16
    assert optimizer.state[net[2].weight]['anchor'].dtype == torch.float32


def test_nothing_is_kept_of_what_cannot_be_rolled_back():
    net = model()
    net[1].requires_grad_(False)
    groups = [dict(params=[*net[0].parameters(), *net[1].parameters()]), dict(params=net[2].parameters(), rollback=0.0)]
    optimizer = AdamWOLOR(groups, **SETTINGS)
    optimizer.select_pretrained = lambda params: [p for p in params if p is not net[0].bias]
    train(net, optimizer, range(2))
    assert bytes_of_anchors(optimizer) == net[0].weight.nbytes


def test_a_frozen_parameter_gets_its_anchor_when_it_is_trained_also_after_a_resume():
    net = model()
    net[0].requires_grad_(False)
    start = net[0].weight.detach().clone()
    optimizer = AdamWOLOR(net.parameters(), **SETTINGS)
    optimizer.select_pretrained = lambda params: [p for p in params if p is not net[0].bias]
    train(net, optimizer, range(2))
    other = copy.deepcopy(net)
    resumed = AdamWOLOR(other.parameters(), **SETTINGS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for n, o in ((net, optimizer), (other, resumed)):
        n[0].requires_grad_(True)
        train(n, o, range(2, 5))
        assert torch.equal(o.state[n[0].weight]['anchor'], start)
        assert 'anchor' not in o.state[n[0].bias]  # was not pre-trained
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters()))


@pytest.fixture(params=['plain.pth', 'nested.pth', 'half.pth', 'some.safetensors'])
def file(request, tmp_path):
    path, state = tmp_path / request.param, model().state_dict()
    if path.suffix == '.safetensors':
        save_file({f'module.{name}': value for name, value in state.items()}, path)
    elif path.stem == 'nested':
        torch.save(dict(meta=dict(epoch=3), state_dict={f'backbone.{n}': v for n, v in state.items()}), path)
    else:
        torch.save({n: v.half() if path.stem == 'half' else v for n, v in state.items()}, path)
    return path


def loaded(path) -> nn.Sequential:
    net = model()
    if path.stem == 'half':
        net.load_state_dict({name: value.half().float() for name, value in net.state_dict().items()})
    return net


def test_file_anchors_train_alike_are_not_saved_and_are_found_again(file, tmp_path):
    net, reference = loaded(file), loaded(file)
    optimizer = AdamWOLOR(net.parameters(), anchor_file=str(file), **SETTINGS)
    plain = AdamWOLOR(reference.parameters(), **SETTINGS)
    train(net, optimizer, range(4))
    train(reference, plain, range(4))
    for p, q in zip(net.parameters(), reference.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert torch.equal(optimizer.state[p]['anchor'].float(), plain.state[q]['anchor'])
    state = optimizer.state_dict()
    entries = [entry['anchor'] for entry in state['state'].values()]
    assert len(entries) == 6
    assert all(entry['file'] == str(file) and re.fullmatch('[0-9a-f]{64}', entry['sha256']) for entry in entries)
    torch.save(state, tmp_path / 'state')

    moved = tmp_path / 'elsewhere' / file.name
    moved.parent.mkdir()
    file.rename(moved)
    other = copy.deepcopy(net)
    resumed = AdamWOLOR(other.parameters(), **SETTINGS)
    with pytest.raises(ValueError, match=f'in the file .*{file.name}.* not there.*anchor_file'):
        resumed.load_state_dict(torch.load(tmp_path / 'state', weights_only=True))
    resumed = AdamWOLOR(other.parameters(), anchor_file=moved, **SETTINGS)
    resumed.load_state_dict(torch.load(tmp_path / 'state', weights_only=True))
    train(net, optimizer, range(4, 8))
    train(other, resumed, range(4, 8))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters()))
    assert resumed.state_dict()['state'][0]['anchor']['file'] == str(moved)


def test_a_file_that_has_been_changed_is_refused(tmp_path):
    file = tmp_path / 'weights.pth'
    torch.save(model().state_dict(), file)
    net = model()
    optimizer = AdamWOLOR(net.parameters(), anchor_file=file, **SETTINGS)
    train(net, optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.unlink()  # the other file stays mapped
    file.write_bytes(changed)
    with pytest.raises(ValueError, match='has been changed since'):
        AdamWOLOR(net.parameters(), **SETTINGS).load_state_dict(state)


def test_what_is_not_in_the_file_is_kept_in_memory_and_told(tmp_path):
    net = model()
    torch.save(net.state_dict(), tmp_path / 'weights.pth')
    with torch.no_grad():
        net[2].weight.mul_(2)  # as if it had been converted
    optimizer = AdamWOLOR(net.parameters(), anchor_file=tmp_path / 'weights.pth', **SETTINGS)
    with pytest.warns(UserWarning, match='1 of 6 pre-trained parameters have a value that is not in it'):
        train(net, optimizer, range(2))
    state = optimizer.state_dict()['state']
    assert [isinstance(state[i]['anchor'], dict) for i in range(6)] == [True] * 4 + [False] + [True]
    other = copy.deepcopy(net)
    resumed = AdamWOLOR(other.parameters(), **SETTINGS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer, range(2, 4))
    train(other, resumed, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters()))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(anchor_dtype='int8'), r"anchor_dtype='int8' is no floating dtype.*'bfloat16'"),
        (dict(anchor_dtype='brain'), "anchor_dtype='brain' is no floating dtype"),
        (dict(anchor_device='gpu'), r"anchor_device='gpu' is no device here; take 'cpu'"),
        (dict(anchor_device='cuda:99'), r"anchor_device='cuda:99' is no device here"),
        (dict(anchor_file='nowhere.pth'), "anchor_file='nowhere.pth' is not a file here"),
        (dict(anchor_file=3), 'anchor_file=3 is not a file here'),
    ],
)
def test_bad_places_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdamWOLOR(model().parameters(), rollback=0.1, **options)
    with pytest.raises(ValueError, match=f'parameter group 0: {message}'):
        AdamWOLOR([dict(params=model().parameters(), **options)], rollback=0.1)


def test_a_file_that_cannot_be_mapped_is_refused(tmp_path):
    torch.save(model().state_dict(), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    net = model()
    with pytest.raises(ValueError, match=r"old\.pth' cannot be memory-mapped.*safetensors"):
        AdamWOLOR(net.parameters(), anchor_file=tmp_path / 'old.pth', **SETTINGS)


def test_anchors_elsewhere_are_fetched_one_by_one_and_none_is_lost():
    """On one device only the dtype can differ."""
    params = [nn.Parameter(torch.zeros(3)) for _ in range(4)]
    anchors = [torch.full((3,), float(i), dtype=torch.float32 if i == 2 else torch.bfloat16) for i in range(4)]
    batches = [(0.1, params[:3], anchors[:3]), (0.2, params[3:], anchors[3:])]
    seen = {}
    for weight, ps, others in fetched(batches):
        assert all(p.dtype == a.dtype for p, a in zip(ps, others))
        seen.update({id(p): (weight, a[0].item()) for p, a in zip(ps, others)})
    assert [seen[id(p)] for p in params] == [(0.1, 0.0), (0.1, 1.0), (0.1, 2.0), (0.2, 3.0)]


RESIDENT = r"""
import re, sys, torch
from olor_mm.optim import AdamWOLOR
file, use = sys.argv[1], sys.argv[2] == 'True'
state = torch.load(file, weights_only=True)
params = [torch.nn.Parameter(value.clone()) for value in state.values()]
del state
for p in params:
    p.grad = torch.full_like(p, 1e-3)
options = dict(rollback=0.01) if use is not None else {}
optimizer = AdamWOLOR([dict(params=params, rollback=0.01 if use else 0.0)], anchor_file=file if use else None)
for _ in range(3):
    optimizer.step()
print(1024 * int(re.search(r'RssAnon:\s+(\d+)', open('/proc/self/status').read())[1]))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_file_anchors_take_no_memory_of_the_process(tmp_path):
    """Of 20 million parameters in four tensors: against the same process without rollback."""
    count = 20_000_000
    torch.save({str(i): torch.full((count // 4,), 0.5 + i) for i in range(4)}, tmp_path / 'weights.pth')
    resident = {}
    for use in (True, False):
        command = [sys.executable, '-W', 'ignore', '-c', RESIDENT, str(tmp_path / 'weights.pth'), str(use)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        resident[use] = int(done.stdout)
    runtime = 60 * 2**20  # numba and its compiler, whatever the size of the model
    assert resident[True] - resident[False] - runtime <= 0.1 * count
