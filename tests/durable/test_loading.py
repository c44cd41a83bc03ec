"""Files that are damaged or hostile: none is taken for good, and nothing in them is run."""

import io
import tempfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import damages, hostile, saved
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from olor_mm.durable import loading
from olor_mm.durable.files import DurableBackend
from olor_mm.durable.loading import CheckpointError, guard_loading, load
from olor_mm.optim import AdamWOLOR


def honest() -> dict:
    """As MMEngine saves it."""
    history = HistoryBuffer()
    for value in (1.0, 2.5):
        history.update(value)
    p = torch.nn.Parameter(torch.randn(64, 64))
    p.grad = torch.randn(64, 64)
    optimizer = AdamWOLOR([p], rollback=0.1)
    optimizer.step()
    state = OrderedDict(weight=p.detach(), half=torch.ones(3, dtype=torch.bfloat16), empty=torch.ones(0))
    state._metadata = OrderedDict(version=1)
    meta = dict(
        dataset_meta=dict(classes=('a', 'b'), palette=np.arange(6).reshape(2, 3), names=np.array(['x', 'yz'])),
        big_endian=np.arange(3, dtype='>i4'),
        by_column=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        scalar=np.float64(0.5),
        dtype=np.dtype('int16'),
        part=slice(1, 2),
        some={1, 2},
        bytes=b'\xff\0',
    )
    hub = dict(log_scalars=OrderedDict(loss=history), runtime_info=OrderedDict(best=np.float32(2)), resumed_keys={})
    return dict(meta=meta, state_dict=state, message_hub=hub, optimizer=optimizer.state_dict())


def same(a, b) -> bool:
    if isinstance(a, HistoryBuffer):
        return isinstance(b, HistoryBuffer) and same(a.data, b.data) and a.max_length == b.max_length
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (np.ndarray, np.generic)):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


@pytest.fixture(params=['weights_only', 'restricted pickle'])
def either_way(request, monkeypatch):
    """torch's own restricted reading, and what older versions of torch get in its place."""
    if request.param == 'restricted pickle':
        monkeypatch.setattr(loading, 'digit_version', lambda version: version == '2.6')


@pytest.mark.parametrize('zipped', [True, False])
def test_what_mmengine_saves_is_read_as_it_was(either_way, zipped):
    content = honest()
    found = load(io.BytesIO(saved(content, zipped)))
    assert same(content, found)
    assert found['state_dict']._metadata == content['state_dict']._metadata
    found['message_hub']['log_scalars']['loss'].update(3.0)
    assert found['message_hub']['log_scalars']['loss'].statistics('mean') == 6.5 / 3


def test_a_marked_file_is_one_that_stock_torch_reads(tmp_path):
    content = honest()
    DurableBackend().put(saved(content), tmp_path / 'a.pth')
    for mmap in (False, True):
        found = torch.load(str(tmp_path / 'a.pth'), weights_only=False, mmap=mmap)
        assert same(content['state_dict'], found['state_dict'])


def test_threads_read_at_the_same_time(tmp_path):
    content = honest()
    torch.save(content, tmp_path / 'a.pth')
    with ThreadPoolExecutor(4) as threads:
        assert all(same(content, found) for found in threads.map(load, [tmp_path / 'a.pth'] * 40))


def accepted(content: bytes, number: int, file: Path) -> list[str]:
    """Names of the damages that are not refused with a message."""
    names = []
    for name, damaged in damages(content, number):
        file.write_bytes(damaged)
        try:
            load(file)
        except CheckpointError as error:
            message = str(error)
            if str(file) in message and 'Take another checkpoint' in message:
                continue
        names.append(name)
    return names


@pytest.mark.parametrize('number', [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_damage_is_taken_for_good(tmp_path, number):
    DurableBackend().put(saved(honest()), tmp_path / 'good.pth')
    content = (tmp_path / 'good.pth').read_bytes()
    assert same(load(tmp_path / 'good.pth'), load(io.BytesIO(content)))
    assert accepted(content, number, tmp_path / 'damaged.pth') == []


def test_stock_files_are_checked_by_the_sums_in_them(tmp_path):
    """Torch does not look at them, so it takes a flipped bit for a weight."""
    content = saved(dict(weight=torch.zeros(1000)))
    place = content.index(bytes(4000)) + 2000
    damaged = content[:place] + b'\1' + content[place + 1 :]
    (tmp_path / 'stock.pth').write_bytes(damaged)
    assert loading.torch_load(tmp_path / 'stock.pth', weights_only=True)['weight'].any()
    with pytest.raises(CheckpointError, match=r'stock\.pth.*checksum is wrong in'):
        load(tmp_path / 'stock.pth')


KINDS = list(hostile(Path(tempfile.mkdtemp(), 'canary')))


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('kind', KINDS)
def test_nothing_in_a_hostile_file_is_run(either_way, tmp_path, kind, zipped):
    canary = tmp_path / 'canary'
    (tmp_path / 'hostile.pth').write_bytes(saved(hostile(canary)[kind], zipped))
    with pytest.raises(CheckpointError, match=r'hostile\.pth.*was not opened.*--trust-checkpoints'):
        load(tmp_path / 'hostile.pth')
    assert not canary.exists()
    loading.torch_load(tmp_path / 'hostile.pth', weights_only=False)
    assert canary.exists()  # it was in there


@pytest.fixture
def guarded(monkeypatch):
    monkeypatch.setattr(torch, 'load', torch.load)
    guard_loading()


def test_guarded_mmengine_refuses_what_it_opens_by_itself(tmp_path, guarded, monkeypatch):
    canary, file = tmp_path / 'canary', str(tmp_path / 'hostile.pth')
    torch.save(hostile(canary)['exec in meta'], file)
    with pytest.raises(CheckpointError, match=r'hostile\.pth'):
        CheckpointLoader.load_checkpoint(file, map_location='cpu')
    assert not canary.exists()
    monkeypatch.setenv(loading.TRUST, '1')
    CheckpointLoader.load_checkpoint(file, map_location='cpu')
    assert canary.exists()


def test_safetensors_are_read(tmp_path, guarded):
    save_file = pytest.importorskip('safetensors.torch').save_file
    save_file(dict(weight=torch.arange(3.0)), tmp_path / 'a.safetensors')
    assert torch.equal(CheckpointLoader.load_checkpoint(str(tmp_path / 'a.safetensors'))['weight'], torch.arange(3.0))
    (tmp_path / 'a.safetensors').write_bytes((tmp_path / 'a.safetensors').read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r'a\.safetensors.*damaged'):
        load(tmp_path / 'a.safetensors')


def test_an_anchor_file_runs_nothing(tmp_path):
    canary, file = tmp_path / 'canary', tmp_path / 'hostile.pth'
    torch.save(hostile(canary)['among the weights'], file)
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r'hostile\.pth.*plain tensors'):
        AdamWOLOR([p], rollback=0.1, anchor_file=str(file)).step()
    assert not canary.exists()
