"""Fine-tune Mask R-CNN on nuclei with stock AdamW and with AdamW-OLOR, and show what each learned and forgot.

make demo                                          # sets everything up and runs this
python demo/run_demo.py --epochs 24 --out work_dirs/long
"""

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import pandas as pd
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import olor_mm  # noqa: F401
from olor_mm.compare.figures import draw_curves
from olor_mm.compare.gallery import Gallery, draw_predictions
from olor_mm.compare.report import Report
from olor_mm.compare.runs import Run, log_rows, read_run
from olor_mm.compare.statistics import Measure
from olor_mm.layers import layer_index
from olor_mm.measure import layer_drift, prediction_agreement, pretrained_state

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tools.model_converters.torchvision_mobilenet_v2 import layer_names  # noqa: E402

RUNS = {'AdamW': 'configs/demo/mask-rcnn_nuclei_adamw.py', 'AdamW-OLOR': 'configs/demo/mask-rcnn_nuclei_olor.py'}
MASK_AP, BOX_AP = Measure('coco/segm_mAP'), Measure('coco/bbox_mAP')
TEST_TILES = 4
console = Console()


@dataclass
class Result:
    """One finished training and what was measured on it."""

    run: Run
    drift: dict[int, float]
    agreement: float
    agreement_old_statistics: float


def train(name: str, config: str, work_dir: Path, epochs: int | None) -> None:
    """Run tools/train.py with a progress bar; its own output goes to WORK_DIR/train.log.

    Raises:
        SystemExit: If training failed; the end of the log is shown.
    """
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    options = [
        f'{key}={epochs}' for key in ('train_cfg.max_epochs', 'param_scheduler.1.end', 'param_scheduler.1.T_max')
    ]
    command = [sys.executable, 'tools/train.py', config, '--work-dir', str(work_dir)]
    if epochs is not None:
        command += ['--cfg-options', *options]
    cfg = Config.fromfile(ROOT / config)
    images = len(json.loads((ROOT / cfg.data_root / 'train.json').read_text())['images'])
    total = -(-images // cfg.train_dataloader.batch_size) * (epochs or cfg.train_cfg.max_epochs)
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('iterations'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
    )
    log = work_dir / 'train.log'
    with open(log, 'w') as output, Progress(*columns, console=console) as progress:
        task = progress.add_task(f'training with {name:<10}', total=total)
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            rows = [row for file in work_dir.glob('*/vis_data/scalars.json') for row in log_rows(file)]
            progress.update(task, completed=max((row['step'] for row in rows if 'loss' in row), default=0))
            time.sleep(0.5)
        if process.returncode:
            raise SystemExit(f'{" ".join(command)} failed:\n' + ''.join(log.read_text().splitlines(True)[-15:]))
        progress.update(task, completed=total)


def quiet() -> contextlib.redirect_stdout:
    """Drops what the libraries print on their own account."""
    return contextlib.redirect_stdout(io.StringIO())


class ImageNetClassifier:
    """The classifier the backbone was pre-trained as, to be asked again after fine-tuning."""

    def __init__(self, weights: Path, photos: Path):
        from mmpretrain.registry import MODELS

        config = Config.fromfile(ROOT / 'configs/classification/olor/mobilenet-v2_olor_1xb32-10e_digits-64px.py')
        cfg = config.model
        cfg.head.update(num_classes=1000, topk=(1, 5))
        cfg.backbone.pop('init_cfg')
        self.model = MODELS.build(cfg)
        self.state = torch.load(weights / 'mobilenet_v2_mmpretrain.pth', weights_only=True)['state_dict']
        mean, std = (torch.tensor(config.data_preprocessor[key]) for key in ('mean', 'std'))
        images = [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in sorted(photos.glob('*.png'))]
        self.photos = torch.stack([(torch.from_numpy(image) - mean) / std for image in images]).permute(0, 3, 1, 2)
        self.original = self._scores(self.state)

    def agreement(self, detector: dict[str, torch.Tensor], old_statistics: bool) -> float:
        """Top-1 agreement with the untouched classifier, of one with a detector's backbone in it.

        Args:
            detector (dict[str, Tensor]): State dict of an mmdet detector with this backbone.
            old_statistics (bool): Whether BatchNorm goes back to its pre-trained running statistics.
        """
        ours, theirs = layer_names('mmpretrain'), layer_names('mmdet')
        renamed = {
            f'backbone.{ours[layer]}.{kind}': detector[f'backbone.{theirs[layer]}.{kind}']
            for layer in ours
            for kind in ('weight', 'bias', 'running_mean', 'running_var')
            if f'backbone.{theirs[layer]}.{kind}' in detector
        }
        kept = {name: self.state[name] for name in renamed if old_statistics and 'running' in name}
        state, _ = pretrained_state(renamed, self.state, kept)
        return prediction_agreement(self._scores(state), self.original)

    @torch.no_grad()
    def _scores(self, state: dict[str, torch.Tensor]) -> torch.Tensor:
        self.model.load_state_dict(state)
        self.model.eval()
        return torch.cat([self.model(batch, mode='tensor') for batch in self.photos.split(16)])


def evaluate(config: str, work_dir: Path, data: Path, classifier: ImageNetClassifier) -> Result:
    from mmdet.apis import init_detector

    run = read_run(work_dir)
    model = init_detector(str(ROOT / config), str(run.checkpoint), device='cpu')
    state = model.state_dict()
    pretrained = torch.load(data / 'weights/mobilenet_v2_mmdet.pth', weights_only=True)['state_dict']
    pretrained = {f'backbone.{name}': value for name, value in pretrained.items()}
    return Result(
        run,
        layer_drift(state, pretrained, layer_index(model)),
        classifier.agreement(state, old_statistics=False),
        classifier.agreement(state, old_statistics=True),
    )


def result_rows(results: dict[str, Result]) -> list[tuple[str, list[str]]]:
    def row(label, form, value):
        return label, [form.format(value(result)) for result in results.values()]

    def depth(result, part):
        layers = list(result.drift.values())
        third = len(layers) // 3
        layers = dict(shallow=layers[:third], middle=layers[third:-third], deep=layers[-third:])[part]
        return sum(layers) / len(layers)

    return [
        row('mask AP on test tiles', '{:.3f}', lambda result: MASK_AP.of(result.run).iloc[-1]),
        row('box AP on test tiles', '{:.3f}', lambda result: BOX_AP.of(result.run).iloc[-1]),
        *(
            row(f'drift of {part} layers', '{:.1%}', lambda result, part=part: depth(result, part))
            for part in ('shallow', 'middle', 'deep')
        ),
        row('agreement with the ImageNet classifier, as it is', '{:.1%}', lambda result: result.agreement),
        row('... with its BatchNorm statistics put back', '{:.1%}', lambda result: result.agreement_old_statistics),
    ]


def layer_rows(results: dict[str, Result]) -> list[tuple[str, list[str]]]:
    layers = next(iter(results.values())).drift
    return [(str(layer), [f'{result.drift[layer]:.1%}' for result in results.values()]) for layer in layers]


def show_tables(results: dict[str, Result], photos: int) -> None:
    tables = {
        'Mask R-CNN (ImageNet MobileNetV2) on nuclei, one seed': ('', result_rows(results)),
        'drift from the pre-trained weights, per layer': ('layer', layer_rows(results)),
    }
    for title, (first, rows) in tables.items():
        table = Table(first, title=title)
        for name in results:
            table.add_column(name, justify='right')
        for label, values in rows:
            table.add_row(label, *values)
        console.print(table)
    console.print(
        f'AP: COCO, 33 nuclei on {TEST_TILES} test tiles. Agreement: top-1, on {photos} crops of real photos. '
        'Drift: ||theta - theta_0|| / ||theta_0||.'
    )


def make_report(results: dict[str, Result], note: str) -> Report:
    def add_table(name, rows):
        labels, values = zip(*rows)
        report.table(pd.DataFrame(values, columns=list(results), index=pd.Index(labels, name=name)))

    report = Report('Mask R-CNN on nuclei: AdamW and AdamW-OLOR')
    report.text(note)
    add_table('', result_rows(results))
    report.heading('Training')
    curves = draw_curves({name: [result.run] for name, result in results.items()}, [Measure('loss'), MASK_AP, BOX_AP])
    report.figure('curves', curves, 'Loss, mask AP and box AP during training. The last values are in the table.')
    report.heading('Predictions on test tiles')
    report.text('Objects with a score above 0.5.')
    gallery = Gallery(next(iter(results.values())).run.cfg, TEST_TILES, score_thr=0.5)
    drawings = {name: gallery.predicted(result.run.cfg, result.run.checkpoint) for name, result in results.items()}
    counts = '; '.join(f'{name}: {", ".join(text for _, text in drawn)}' for name, drawn in drawings.items())
    figure = draw_predictions(gallery, {'annotated': gallery.annotated(), **drawings})
    report.figure('predictions', figure, f'Nuclei as annotated and as found. {counts}')
    report.heading('Drift from the pre-trained weights')
    add_table('layer (0 is nearest the input)', layer_rows(results))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/demo', help='where runs and report are written')
    parser.add_argument('--epochs', type=int, help='train longer or shorter than the configs say')
    args = parser.parse_args()
    start = time.monotonic()
    data = ROOT / 'data'
    console.rule('1/4 weights and images')
    subprocess.run(
        [sys.executable, 'tools/dataset_converters/embedded.py', 'weights', 'nuclei', 'photos'], cwd=ROOT, check=True
    )
    console.rule('2/4 training, about a minute each on two cores')
    out = args.out.resolve()
    for name, config in RUNS.items():
        train(name, config, out / Path(config).stem, args.epochs)
    console.rule('3/4 what was learned, what was forgotten')
    warnings.simplefilter('ignore')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    with quiet():
        classifier = ImageNetClassifier(data / 'weights', data / 'photos')
        results = {name: evaluate(config, out / Path(config).stem, data, classifier) for name, config in RUNS.items()}
    show_tables(results, len(classifier.photos))
    console.rule('4/4 report')
    caution = (
        f'One seed, {TEST_TILES} test tiles: this shows the tools at work, it is no evidence for either optimizer.'
    )
    note = f'{caution} Agreement is measured on {len(classifier.photos)} crops of real photos.'
    with quiet():
        make_report(results, note).write(out)
    console.print(
        f'[bold]{out / "report.html"}[/bold] has curves, drift per layer and predictions. '
        f'Took {time.monotonic() - start:.0f} s.'
    )
    console.print(caution)
    console.print(
        'Your own weights and data: start from configs/demo/mask-rcnn_nuclei_olor.py, set '
        'model.backbone.init_cfg.checkpoint (or load_from), data_root and metainfo.classes, and run '
        'python tools/train.py YOUR_CONFIG; the README says more.'
    )


if __name__ == '__main__':
    main()
