"""Teach a detector of three digits three others, plainly and with `init --keep-classes`, and show what it knows.

make demo                                          # sets everything up and runs this
python demo/run_demo.py --out work_dirs/other
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from olor_mm.compare.figures import draw_curves
from olor_mm.compare.report import Report
from olor_mm.compare.runs import Run, log_rows, read_run
from olor_mm.compare.statistics import Measure
from olor_mm.inspect.libraries import quiet

ROOT = Path(__file__).resolve().parents[1]
TRAINED = 'configs/demo/fcos_mobilenet-v2-fpn_1xb8-8e_digits-128px.py'
CLASSES = [f'digit {digit}' for digit in (0, 2, 4, 1, 3, 5)]
OLD, NEW = 'data/demo/old', 'data/demo/new'  # of three classes each
RUNS = dict(before='before', plain='plain fine-tuning', ours='olor_mm')  # folders, and what they are called
EPOCHS = 6
PLAIN = """# What fine-tuning is without olor_mm: a new head, free weights, and the annotations of the new images alone.
_base_ = 'ours.py'
train_dataloader = dict(dataset=dict(ann_file={annotations!r}))
custom_hooks = _base_.custom_hooks[:-1]
optim_wrapper = dict(paramwise_cfg=dict(rollback=dict(max_level=0.0, min_level=0.0)))
"""
ABOUT = (
    'A detector was trained on photos with the digits 0, 2 and 4. Then it learns 1, 3 and 5, from other photos, where '
    'nothing but these is annotated. Plain fine-tuning has a new head. "olor_mm" is init --keep-classes and the '
    'commands that it prints: it keeps the rows of the head of old classes, the old model labels old classes in the '
    'new photos, and weights are rolled back towards it.'
)
console = Console()


def start(*words: str, log: Path, threads: int) -> subprocess.Popen:
    """A command of olor_mm, on the CPU; what it prints goes to a file."""
    console.print(f'$ python -m olor_mm {shlex.join(words)}', style='dim', highlight=False, soft_wrap=True)
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY='PASSIVE')
    command = [sys.executable, '-m', 'olor_mm', *words]
    with open(log, 'w') as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, log: Path) -> str:
    """What a command has printed.

    Raises:
        SystemExit: If it failed; the end of the log is shown.
    """
    if process.wait():
        raise SystemExit(f'{shlex.join(process.args)} failed:\n' + ''.join(log.read_text().splitlines(True)[-15:]))
    return log.read_text()


def train(configs: dict[str, str | Path], out: Path, threads: int) -> None:
    """Train with each config at the same time, in a folder by its name, and show how far each one is."""
    columns = TextColumn('{task.description:<6}'), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    running = {}
    for name, config in configs.items():
        words = 'train', str(config), '--work-dir', str(out / name)
        running[name] = start(*words, log=out / f'{name}.log', threads=threads)
    with Progress(*columns, console=console) as progress:
        bars = {name: progress.add_task(name, total=iterations(config)) for name, config in configs.items()}
        while any(process.poll() is None for process in running.values()):
            for name in running:
                rows = [row for file in out.glob(f'{name}/*/vis_data/scalars.json') for row in log_rows(file)]
                progress.update(bars[name], completed=max((row['step'] for row in rows if 'loss' in row), default=0))
            time.sleep(0.5)
        for name, process in running.items():
            finish(process, out / f'{name}.log')
            progress.update(bars[name], completed=iterations(configs[name]))


def iterations(config: str | Path) -> int:
    cfg = Config.fromfile(ROOT / config)
    data = cfg.train_dataloader.dataset
    images = json.loads((ROOT / data.data_root / data.ann_file).read_text())['images']
    return -(-len(images) // cfg.train_dataloader.batch_size) * cfg.train_cfg.max_epochs


def keep_classes(out: Path) -> Path:
    """The config of the new training, by `init --keep-classes` and the `label` command that it prints."""
    config, log = out / 'ours.py', out / 'init.log'
    words = f'init {NEW} --keep-classes --replay {OLD} --replay-images 0 --task detection --config {TRAINED}'.split()
    words += ['--checkpoint', str(read_run(out / 'before').checkpoint), '--epochs', str(EPOCHS), '--lr', '1e-3']
    said = finish(start(*words, '--batch-size', '8', '--out', str(config), '--force', log=log, threads=1), log)
    [label] = re.findall(r'^    \S.*? (label .*)', said, re.MULTILINE)
    (out / 'ours_labels.json').unlink(missing_ok=True)
    log = out / 'label.log'
    said = finish(start(*shlex.split(label), log=log, threads=1), log)
    console.print(*re.findall('.* annotations.*', said), sep='\n', highlight=False, soft_wrap=True)
    return config


def write_plain(ours: Path) -> Path:
    """The config of plain fine-tuning, and its annotations: those of ours without what the old model has added."""
    labels = json.loads(Path(Config.fromfile(ours).train_dataloader.dataset.ann_file).read_text())
    new = {category['id'] for category in labels['categories'] if category['name'] in CLASSES[3:]}
    labels['annotations'] = [found for found in labels['annotations'] if found['category_id'] in new]
    annotations, config = ours.with_name('plain_labels.json'), ours.with_name('plain.py')
    annotations.write_text(json.dumps(labels))
    config.write_text(PLAIN.format(annotations=str(annotations)))
    return config


def results(runs: dict[str, Run]) -> pd.DataFrame:
    """AP of old and of new classes on the test images after the last epoch; a row for each run."""
    table = {}
    for name, run in runs.items():
        groups = ('', None) if name == 'before' else ('_old', '_new')
        keys = [group is not None and f'coco/bbox_mAP{kind}{group}' for group in groups for kind in ('_50', '')]
        table[RUNS[name]] = [f'{Measure(key).of(run).iloc[-1]:.3f}' if key else '-' for key in keys]
    columns = ['AP50 old', 'AP old', 'AP50 new', 'AP new']
    return pd.DataFrame.from_dict(table, orient='index', columns=columns)


def report(runs: dict[str, Run], table: pd.DataFrame, out: Path) -> None:
    """Write the report with the picture and the curves."""
    page = Report('A detector learns new classes: what is left of the old ones')
    page.text(ABOUT)
    page.table(table)
    models = {
        f'{name}\nAP50 old {row.iloc[0]}\nAP50 new {row.iloc[2]}': (run.cfg, run.checkpoint)
        for run, (name, row) in zip(runs.values(), table.iterrows())
    }
    caption = 'The same test images three times. Cold colours are old classes, warm colours new ones.'
    with quiet():
        from picture import draw

        page.figure('images', draw(models, [ROOT / OLD, ROOT / NEW], CLASSES), caption)
    page.heading('While they train')
    measures = [Measure(f'coco/bbox_mAP_50_{group}') for group in ('old', 'new')]
    curves = draw_curves({RUNS[name]: [runs[name]] for name in ('plain', 'ours')}, measures)
    page.figure('curves', curves, 'AP50 of old and new classes on the test images after each epoch.')
    page.text('One seed, 60 test images. Their photos and their handwriting are not those of training.')
    page.write(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/demo', help='where runs and report are written')
    out = parser.parse_args().out.resolve()
    begin = time.monotonic()
    for name in RUNS:  # of an earlier demo
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    console.rule('1/4 weights and images')
    subprocess.run([sys.executable, 'tools/dataset_converters/embedded.py', 'weights', 'demo'], cwd=ROOT, check=True)
    console.rule('2/4 a detector that knows 0, 2 and 4')
    train(dict(before=TRAINED), out, threads=2)
    console.rule('3/4 it learns 1, 3 and 5')
    ours = keep_classes(out)
    train(dict(plain=write_plain(ours), ours=ours), out, threads=1)
    console.rule('4/4 what it knows now')
    runs = {name: read_run(out / name) for name in RUNS}
    table = results(runs)
    shown = Table('', *table.columns, title='old: digits 0, 2, 4; new: 1, 3, 5. One seed')
    for name, row in table.iterrows():
        shown.add_row(name, *row)
    console.print(shown)
    report(runs, table, out)
    console.print(f'[bold]{out / "report.html"}[/bold] has the same images before and after; all logs are beside it.')
    console.print(f'{(time.monotonic() - begin) / 60:.1f} minutes')


if __name__ == '__main__':
    main()
