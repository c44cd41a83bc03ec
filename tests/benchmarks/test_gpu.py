"""The benchmark for GPUs, where there is none: every step of it that needs none is gone through."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_dry_run_goes_through_every_step_and_all_paths_are_right(tmp_path):
    command = [sys.executable, 'benchmarks/gpu.py', '--dry-run', '--out', str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / 'gpu.json').read_text())
    assert {row['verdict'] for row in found['checks']} == {'right'}
    assert found['steps'].keys() == found['iterations'].keys()
    for name in found['steps']:
        assert name in (tmp_path / 'gpu.md').read_text()
