"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT [options]"""

from olor_mm.cli.test import main

if __name__ == '__main__':
    main()
