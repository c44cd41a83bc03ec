import re
import sys

import pytest
import torch
from conftest import ROOT, load, run
from mmengine.logging import HistoryBuffer

from olor_mm.measure import interpolate

TOOL = [sys.executable, 'tools/model_converters/wise_ft.py']


def models() -> tuple[dict, dict]:
    generator = torch.Generator().manual_seed(0)
    start = {
        'conv.weight': torch.randn(4, 3, generator=generator),
        'bn.running_var': torch.rand(4, generator=generator),
        'bn.num_batches_tracked': torch.tensor(7),
        'fc.weight': torch.randn(9, 4, generator=generator),
        'old.weight': torch.randn(2, generator=generator),
    }
    end = {f'backbone.{k}': v + 1 for k, v in start.items() if k != 'old.weight'}
    end['backbone.fc.weight'], end['head.weight'] = torch.randn(3, 4), torch.randn(5)
    return start, end


@pytest.mark.parametrize('alpha', [0.0, 0.3, 0.5, 1.0])
def test_weights_and_statistics_are_interpolated_and_the_rest_is_fine_tuned(alpha):
    start, end = models()
    state, kept = interpolate(start, end, alpha, 'backbone.')
    assert list(state) == list(end)
    for name in ('conv.weight', 'bn.running_var'):
        expected = (1 - alpha) * start[name].double() + alpha * end[f'backbone.{name}'].double()
        torch.testing.assert_close(state[f'backbone.{name}'].double(), expected, rtol=1e-6, atol=1e-7)
        assert state[f'backbone.{name}'].dtype == torch.float32
    assert state['backbone.bn.num_batches_tracked'] == 8
    assert kept == {
        'backbone.fc.weight': 'of shape (9, 4) in the pre-trained model and (3, 4) here',
        'head.weight': 'not in the pre-trained model',
    }
    for name in kept:
        assert torch.equal(state[name], end[name])


def test_the_ends_are_the_two_models_to_the_bit():
    start, end = models()
    assert torch.equal(
        interpolate(start, end, 1.0, 'backbone.')[0]['backbone.conv.weight'], end['backbone.conv.weight']
    )
    assert torch.equal(interpolate(start, end, 0.0, 'backbone.')[0]['backbone.conv.weight'], start['conv.weight'])


@pytest.mark.parametrize('alpha', [-0.1, 1.5, float('nan')])
def test_a_share_outside_of_the_two_models_is_refused(alpha):
    with pytest.raises(ValueError, match=rf'alpha={alpha} is not in \[0, 1\]'):
        interpolate(*models(), alpha, 'backbone.')


def test_models_with_little_in_common_are_refused_and_a_prefix_that_fits_is_named():
    start, end = models()
    del start['old.weight'], start['fc.weight']
    found = r"^only 0 of the 2 .* like 'conv.weight' \(prefix=''\).* like 'backbone.conv.weight': .*"
    with pytest.raises(ValueError, match=found + "give prefix='backbone.', with which they are 2$"):
        interpolate(start, end, 0.5)
    start.update({f'layer{i}.weight': torch.zeros(2) for i in range(3)})  # as in another library
    with pytest.raises(ValueError, match='^only 2 of the 5 .* or the pre-trained weights as that library names them$'):
        interpolate(start, end, 0.5, 'backbone.')


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
    assert done.returncode == 1 and 'is what was read and would be lost' in done.stdout
    assert (tmp_path / 'finetuned.pth').read_bytes() == before
    done = run(*TOOL, ROOT / 'none.pth', tmp_path / 'finetuned.pth', out, check=False)
    assert done.returncode and 'wise_ft: ' in done.stdout and 'none.pth' in done.stdout
