import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch.hub."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    checkpoints = tmp_path / 'torch/hub/checkpoints'
    checkpoints.mkdir(parents=True)
    return checkpoints
