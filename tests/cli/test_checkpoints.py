"""`init` takes the weights that training loads, and tells why it would load none of others."""

import pytest
import torch
from commands import init
from damage import hostile
from mmengine.config import Config

from olor_mm.inspect.rollback_table import examine as inspected

MOBILENET = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'


def backbone_of(state: dict) -> dict:
    return {name.removeprefix('backbone.'): value for name, value in state.items() if name.startswith('backbone.')}


FILES = {  # what a file has for the weights of a whole model, and what is told if training would not load it
    'under state_dict': (lambda state: dict(state_dict=state), None),
    'by name': (lambda state: state, None),
    'of DDP': (lambda state: dict(state_dict={f'module.{name}': value for name, value in state.items()}), None),
    'of the backbone': (backbone_of, None),
    'of the backbone, of DDP': (lambda state: {f'module.{n}': v for n, v in backbone_of(state).items()}, None),
    'under model': (lambda state: dict(model=state, epoch=3), "'model'.*'state_dict'"),
    'under params': (lambda state: dict(state_dict=dict(params=state)), "'params'"),
    'with a prefix': (lambda state: dict(state_dict={f'net.{name}': v for name, v in state.items()}), "'net.backbone"),
    'of another width': (lambda state: {name: torch.cat([v, v]) for name, v in state.items() if v.ndim}, 'shape'),
    'of nothing': (lambda state: dict(epoch=3), '0%'),
    'a list': (lambda state: [*state.values()], 'list|state_dict'),
}


@pytest.mark.parametrize('what', FILES)
def test_weights_are_read_as_training_reads_them(what, data, folders, tmp_path, capsys):
    wrapped, refused = FILES[what]
    state = torch.load(data / 'weights/mobilenet_v2_mmpretrain.pth', weights_only=True)['state_dict']
    torch.save(wrapped(state), tmp_path / 'given.pth')
    options = '--task', 'classification', '--config', MOBILENET, '--checkpoint', tmp_path / 'given.pth'
    if refused:
        with pytest.raises(SystemExit, match=f'given.pth.*(?:{refused})'):
            init(folders, *options, '--out', tmp_path / 'own.py')
        return
    init(folders, *options, '--out', tmp_path / 'own.py')
    cfg = Config.fromfile(tmp_path / 'own.py')
    assert '_delete_' not in repr(cfg.to_dict())
    rows = [row for row in inspected(cfg).parameters if row.name.startswith('backbone.')]
    assert rows and all(row.source == str(tmp_path / 'given.pth') and row.is_held for row in rows)


def test_init_opens_what_is_trusted_alone(folders, tmp_path):
    torch.save(hostile(tmp_path / 'canary')['among the weights'], tmp_path / 'hostile.pth')
    options = '--task', 'classification', '--config', MOBILENET, '--checkpoint', tmp_path / 'hostile.pth'
    with pytest.raises(SystemExit, match='hostile.pth.*--trust-checkpoints'):
        init(folders, *options, '--out', tmp_path / 'own.py')
    assert not (tmp_path / 'canary').exists()
    with pytest.raises(SystemExit, match='does not fit'):
        init(folders, *options, '--out', tmp_path / 'own.py', '--trust-checkpoints')
    assert (tmp_path / 'canary').exists()
