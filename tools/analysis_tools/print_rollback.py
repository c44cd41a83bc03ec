"""Print what rollback a config means, before training: python tools/analysis_tools/print_rollback.py CONFIG"""

from olor_mm.__main__ import run

if __name__ == '__main__':
    run('print_rollback')
