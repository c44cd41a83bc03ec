import re
import sys

import pytest
import torch
from conftest import ROOT, load, run
from mmengine.logging import HistoryBuffer

TOOL = [sys.executable, 'tools/model_converters/wise_ft.py']


@pytest.mark.parametrize('content', [b'no checkpoint', None])
def test_what_is_no_checkpoint_is_named(content, tmp_path):
    file = tmp_path / 'a.pth'
    if content is not None:
        file.write_bytes(content)
    done = run(sys.executable, 'tools/model_converters/wise_ft.py', file, file, tmp_path / 'b.pth', check=False)
    assert done.returncode == 1 and 'Traceback' not in done.stdout
    assert re.search(r'wise_ft: .*a\.pth', done.stdout)


def test_command_line(data, tmp_path):
    source = data / 'weights/mobilenet_v2_mmpretrain.pth'
    weights = load(source)['state_dict']
    finetuned = {name: value + 1 for name, value in weights.items() if not name.startswith('head.')}
    finetuned['head.fc.weight'] = torch.ones(10, 1280)
    log = dict(log=HistoryBuffer([1.0], [1]))
    meta = dict(dataset_meta=dict(classes=('a', 'b')))
    torch.save(dict(state_dict=finetuned, meta=meta, message_hub=log), tmp_path / 'finetuned.pth')
    out = tmp_path / 'new/between.pth'
    done = run(*TOOL, source, tmp_path / 'finetuned.pth', out, '--alpha', '0.25')
    assert '260 tensors interpolated, 1 taken from the fine-tuned model' in done.stdout
    assert 'head.fc.weight: of shape (1000, 1280) in the pre-trained model and (10, 1280) here' in done.stdout
    written = torch.load(out, weights_only=True)
    assert written['meta'] == meta
    name = 'backbone.conv1.conv.weight'
    torch.testing.assert_close(written['state_dict'][name], weights[name] + 0.25)
    before = (tmp_path / 'finetuned.pth').read_bytes()
    done = run(*TOOL, source, tmp_path / 'finetuned.pth', tmp_path / 'new/../finetuned.pth', check=False)
    assert done.returncode == 1 and 'new/../finetuned.pth' in done.stdout
    assert (tmp_path / 'finetuned.pth').read_bytes() == before
    done = run(*TOOL, ROOT / 'none.pth', tmp_path / 'finetuned.pth', out, check=False)
    assert done.returncode and 'wise_ft: ' in done.stdout and 'none.pth' in done.stdout
