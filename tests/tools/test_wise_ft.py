import sys

import pytest
import torch
from conftest import load
from mmengine.logging import HistoryBuffer

from tools.model_converters.wise_ft import main


@pytest.fixture
def wise_ft(monkeypatch):
    """The tool in this process, which patches ``torch.load``."""

    def run(*arguments) -> None:
        monkeypatch.setattr(sys, 'argv', ['wise_ft.py', *map(str, arguments)])
        main()

    return run


def test_the_weights_in_between_are_written(data, tmp_path, wise_ft, capsys):
    source = data / 'weights/mobilenet_v2_mmpretrain.pth'
    weights = load(source)['state_dict']
    finetuned = {name: value + 1 for name, value in weights.items() if not name.startswith('head.')}
    finetuned['head.fc.weight'] = torch.ones(10, 1280)
    log = dict(log=HistoryBuffer([1.0], [1]))
    meta = dict(dataset_meta=dict(classes=('a', 'b')))
    theirs, out = tmp_path / 'finetuned.pth', tmp_path / 'new/between.pth'
    torch.save(dict(state_dict=finetuned, meta=meta, message_hub=log), theirs)
    wise_ft(source, theirs, out, '--alpha', '0.25')
    said = capsys.readouterr().out
    assert '260 tensors' in said and 'head.fc.weight: of shape (1000, 1280)' in said
    written = torch.load(out, weights_only=True)
    assert written['meta'] == meta
    name = 'backbone.conv1.conv.weight'
    torch.testing.assert_close(written['state_dict'][name], weights[name] + 0.25)
    before = theirs.read_bytes()
    with pytest.raises(SystemExit, match='wise_ft: .*new/../finetuned.pth'):
        wise_ft(source, theirs, tmp_path / 'new/../finetuned.pth')
    assert theirs.read_bytes() == before
