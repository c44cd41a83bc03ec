"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT [options]"""

from olor_mm.__main__ import run

if __name__ == '__main__':
    run('test')
