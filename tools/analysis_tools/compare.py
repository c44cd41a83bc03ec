"""Compare finished runs: python tools/analysis_tools/compare.py LABEL=GLOB ... --out FOLDER"""

from olor_mm.cli.compare import main

if __name__ == '__main__':
    main()
