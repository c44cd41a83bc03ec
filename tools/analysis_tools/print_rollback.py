"""Print what rollback a config means, before training: python tools/analysis_tools/print_rollback.py CONFIG"""

from olor_mm.cli.print_rollback import main

if __name__ == '__main__':
    main()
