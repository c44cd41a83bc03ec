"""Compare finished runs: python tools/analysis_tools/compare.py LABEL=GLOB ... --out FOLDER"""

from olor_mm.__main__ import run

if __name__ == '__main__':
    run('compare')
