import re

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient


@pytest.mark.slow
def test_the_notebook_runs_as_it_is(data, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.delenv('MPLBACKEND', raising=False)  # the kernel draws into the notebook
    notebook = nbformat.read(ROOT / 'demo/finetune_your_data.ipynb', as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name='python3', resources=dict(metadata=dict(path=tmp_path))).execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    # while and after an inferencer shows its progress, rich displays what is printed
    text = ''.join(output.get('text') or output.get('data', {}).get('text/plain', '') for output in outputs)
    assert re.search(r'\(backbone (\d+) of \1\b', text)
    assert re.search(r'layers used .* of their drift budgets', text)
    drifts = [float(share) for share in re.findall(r'layer\s+\d+\s+(\d+\.\d)%', text)]
    assert len(drifts) >= 17 and 0 < drifts[0] <= 4 and max(drifts) <= 16
    assert 0 < int(re.search(r'agreement with the ImageNet classifier: (\d+)%', text)[1]) < 100
    assert int(re.search(r'right: (\d+) of 10', text)[1]) >= 6  # by chance it would be 1
    code = [line for cell in notebook.cells if cell.cell_type == 'code' for line in cell.source.splitlines()]
    assert len(code) < 80
    assert any('image/png' in output.get('data', {}) for output in outputs)
