"""Try to lose or spoil a training in many ways, and report how each ended.

python tools/analysis_tools/reliability.py                   # all studies, hours; writes docs/en/reliability.md
python tools/analysis_tools/reliability.py --studies damage soak --out /tmp/reliability.md

Every study writes its rows to work_dirs/reliability/STUDY.jsonl; a complete one is not run again.
"""

import argparse
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
Report = runpy.run_path(str(ROOT / 'benchmarks/common.py'))['Report']
SEVERAL = 15  # cases of a study; more are grouped by kind
BEFORE_DETAIL = dict(bad_configs=':', command_lines=' ')  # in the name of a case, after its kind

INTRODUCTION = (
    'Does a training survive what can happen to it? Runs were killed, restarted and damaged with `tools/train.py` and '
    '`tools/dist_train.sh`, on the digits of `make data`. The rest are the tests named under each heading. '
    '[Resume and distributed training](resume_and_distributed.md) says what keeps trainings safe. *Ok* is what you '
    'would want: a run that ends as if nothing had happened, or a message that names file or setting and what to do.'
)


@dataclass(frozen=True)
class Study:
    """A study: a command that writes rows, or tests, whose results are the rows.

    Args:
        title (str): Heading.
        command (str): Python file and options; FILE stands for the file of rows, FOLDER for its folder. '' for tests.
        tests (tuple[str, ...]): Command lines of pytest. A test that records properties gives a row for each of them.
        rows (int): Number of rows of a complete study.
    """

    title: str
    command: str = ''
    tests: tuple[str, ...] = ()
    rows: int = 1


STUDIES = {
    'kills': Study(
        'Eight trainings, each killed ten times by SIGKILL at random moments and resumed',
        'tests/faults/kills.py FILE',
        rows=88,
    ),
    'kills_2': Study(
        'Two trainings of two processes, each killed ten times',
        'tests/faults/kills.py FILE --processes 2 --runs 2',
        rows=22,
    ),
    'damage': Study(
        'Damaged checkpoints',
        tests=('tests/faults/test_resume.py -k 200',),
        rows=198,
    ),
    'altered': Study(
        'Checkpoints of something else, altered, or lost',
        tests=('tests/faults/test_resume.py -k "something_else or where_no_checkpoint or lost_last"',),
    ),
    'faults': Study(
        'Other ways for a training to end or to break',
        tests=(
            'tests/faults/test_unsound.py',
            'tests/faults/test_tools.py -k "not hostile and not killed"',
            'tests/faults/test_jobs.py -k worker',
        ),
    ),
    'bad_configs': Study(
        'Generated configs, good and bad',
        tests=('tests/faults/test_bad_input.py -k hundreds',),
    ),
    'command_lines': Study(
        'Generated command lines, good and bad',
        tests=('tests/faults/test_command_lines.py -k hundreds',),
    ),
    'pickles': Study('Checkpoints with code in them', tests=('tests/durable tests/faults -k hostile',)),
    'processes': Study(
        'Several processes, nodes and restarts',
        tests=('tests/distributed', 'tests/faults/test_jobs.py -k "not worker and not killed_again"'),
    ),
    'soak': Study('20,000 steps', tests=('tests/faults/test_soak.py -k 20000',)),
}


def run_study(name: str, study: Study, file: Path) -> None:
    """Run what is missing of a study."""
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'}
    if study.command:
        places = dict(FILE=str(file), FOLDER=str(file.parent))
        command = [places.get(part, part) for part in shlex.split(study.command)]
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True)
        return
    rows = []
    for tests in study.tests:
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder, 'results.xml')
            options = [
                '-m',
                '',
                '-q',
                '-o',
                'junit_family=xunit1',
                f'--junitxml={results}',
                f'--basetemp={folder}/pytest',
            ]
            subprocess.run([sys.executable, '-m', 'pytest', *shlex.split(tests), *options], cwd=ROOT, env=environment)
            rows += [
                dict(study=name, **row) for case in ElementTree.parse(results).iter('testcase') for row in of_test(case)
            ]
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def of_test(case: ElementTree.Element) -> list[dict]:
    """Rows of a test: its properties, or how it ended."""
    bad = next((case.find(kind) for kind in ('failure', 'error', 'skipped') if case.find(kind) is not None), None)
    recorded = [(p.get('name'), p.get('value')) for p in case.iter('property')]
    if bad is not None or not recorded:
        name = case.get('name').removeprefix('test_').replace('_', ' ').replace('[', ' (').replace(']', ')')
        ended = 'passed' if bad is None else f'{bad.tag}: {bad.get("message", "").splitlines()[0]}'
        recorded = [(name, ended)]
    return [dict(case=name, outcome=ended, ok=bad is None, detail='') for name, ended in recorded]


def counted(rows: list[dict]) -> list[list[str]]:
    """Rows of the table: what was tried and how it ended, how often, and how often that was right and wrong."""
    rows = [dict(row, case=row['case'].replace('|', '/'), outcome=row['outcome'].replace('|', '/')) for row in rows]
    if len({row['case'] for row in rows}) > SEVERAL:
        cases = [row['case'].split(BEFORE_DETAIL.get(row.get('study'), ' ('))[0] for row in rows]
        rows = [dict(r, case=kind_of(case), outcome=kind_of(r['outcome'])) for r, case in zip(rows, cases)]
        often = Counter(row['case'] for row in rows)
        rows = [dict(row, case=row['case'] if 50 * often[row['case']] > len(rows) else 'others') for row in rows]
    number, good = (Counter((r['case'], r['outcome']) for r in some) for some in (rows, [r for r in rows if r['ok']]))
    return [
        [f'{case}: {outcome}', str(n), str(good[case, outcome]), str(n - good[case, outcome])]
        for (case, outcome), n in sorted(number.items(), key=lambda item: (item[0][0], -item[1]))
    ]


def kind_of(text: str) -> str:
    return re.sub(r'(?<![\w-])\d[\d.,e-]*', 'N', text)


def main() -> None:
    parser = argparse.ArgumentParser(description='Run the studies of faults and write down how they ended')
    parser.add_argument('--studies', nargs='+', choices=list(STUDIES), default=list(STUDIES), help='default: all')
    parser.add_argument('--rows', type=Path, default=ROOT / 'work_dirs/reliability', help='folder for rows of studies')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/en/reliability.md')
    args = parser.parse_args()
    args.rows.mkdir(parents=True, exist_ok=True)
    report = Report('What was tried, and what happened', 'python tools/analysis_tools/reliability.py')
    report.blocks.append(INTRODUCTION)
    wrong = 0
    for name in args.studies:
        study, file = STUDIES[name], (args.rows / f'{name}.jsonl').absolute()
        if not file.exists() or len(file.read_text().splitlines()) < study.rows:
            run_study(name, study, file)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        bad = [row for row in rows if not row['ok']]
        wrong += len(bad)
        told = ''.join(f'\n\nNot ok: {row["case"]}: {row["outcome"]}. {row.get("detail", "")}' for row in bad[:20])
        how = study.command.replace('FILE', f'work_dirs/reliability/{name}.jsonl').replace(
            'FOLDER', 'work_dirs/reliability'
        ) or '; '.join(study.tests)
        title = f'{study.title}: {len(rows):,} cases, {len(bad)} not ok'
        report.table(
            title, ['what was tried, and how it ended', 'cases', 'ok', 'not ok'], counted(rows), f'`{how}`{told}'
        )
    args.out.write_text('\n\n'.join(report.blocks) + '\n')
    if wrong:
        raise SystemExit(f'{wrong} cases are not ok; see {args.out}')


if __name__ == '__main__':
    main()
