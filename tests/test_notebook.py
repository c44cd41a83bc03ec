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
    text = ''.join(output.get('text', '') for output in outputs)
    assert re.search(r'\(backbone (\d+) of \1\)', text)
    assert int(re.search(r'right: (\d+) of 10', text)[1]) >= 6  # by chance it would be 1
    assert any('image/png' in output.get('data', {}) for output in outputs)
