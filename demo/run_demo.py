"""Fine-tune Mask R-CNN on nuclei with stock AdamW and with AdamW-OLOR, and show what each learned and forgot.

make demo                                          # sets everything up and runs this
python demo/run_demo.py --epochs 24 --out work_dirs/long
"""

import argparse
import base64
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
import matplotlib
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import olor_mm  # noqa: F401
from olor_mm.analysis import layer_drift, prediction_agreement, upstream_state
from olor_mm.layers import layer_index

matplotlib.use('Agg')
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tools.model_converters.torchvision_mobilenet_v2 import layer_names  # noqa: E402

RUNS = {'AdamW': 'configs/demo/mask-rcnn_nuclei_adamw.py', 'AdamW-OLOR': 'configs/demo/mask-rcnn_nuclei_olor.py'}
COLOURS = {'AdamW': '#c44e52', 'AdamW-OLOR': '#4c72b0'}
TEST_TILES = 4
console = Console()


@dataclass
class Run:
    """One finished training and what was measured on it."""

    model: torch.nn.Module
    train: list[dict]
    val: list[dict]
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
            progress.update(task, completed=max((row['step'] for row in read_scalars(work_dir)[0]), default=0))
            time.sleep(0.5)
        if process.returncode:
            raise SystemExit(f'{" ".join(command)} failed:\n' + ''.join(log.read_text().splitlines(True)[-15:]))
        progress.update(task, completed=total)


def quiet() -> contextlib.redirect_stdout:
    """Drops what the libraries print on their own account."""
    return contextlib.redirect_stdout(io.StringIO())


def read_scalars(work_dir: Path) -> tuple[list[dict], list[dict]]:
    """Rows that MMEngine logged in training, and those of validation."""
    rows = []
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a line that is being written
                rows.append(json.loads(line))
    return [row for row in rows if 'loss' in row], [row for row in rows if 'coco/segm_mAP' in row]


class ImageNetClassifier:
    """The classifier the backbone was pre-trained as, to be asked again after fine-tuning."""

    def __init__(self, weights: Path, photos: Path):
        from mmpretrain.registry import MODELS

        config = Config.fromfile(ROOT / 'configs/classification/mobilenet-v2_olor_1xb32-10e_digits-64px.py')
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
        state, _ = upstream_state(renamed, self.state, kept)
        return prediction_agreement(self._scores(state), self.original)

    @torch.no_grad()
    def _scores(self, state: dict[str, torch.Tensor]) -> torch.Tensor:
        self.model.load_state_dict(state)
        self.model.eval()
        return torch.cat([self.model(batch, mode='tensor') for batch in self.photos.split(16)])


def evaluate(config: str, work_dir: Path, data: Path, classifier: ImageNetClassifier) -> Run:
    from mmdet.apis import init_detector

    checkpoint = Path((work_dir / 'last_checkpoint').read_text())
    model = init_detector(str(ROOT / config), str(checkpoint), device='cpu')
    state = model.state_dict()
    pretrained = torch.load(data / 'weights/mobilenet_v2_mmdet.pth', weights_only=True)['state_dict']
    pretrained = {f'backbone.{name}': value for name, value in pretrained.items()}
    return Run(
        model,
        *read_scalars(work_dir),
        layer_drift(state, pretrained, layer_index(model)),
        classifier.agreement(state, old_statistics=False),
        classifier.agreement(state, old_statistics=True),
    )


def result_rows(runs: dict[str, Run]) -> list[tuple[str, list[str]]]:
    def mean(values):
        return sum(values) / len(values)

    def depth(run, part):
        layers = list(run.drift.values())
        third = len(layers) // 3
        return mean(dict(shallow=layers[:third], middle=layers[third:-third], deep=layers[-third:])[part])

    return [
        ('mask AP on test tiles', [f'{run.val[-1]["coco/segm_mAP"]:.3f}' for run in runs.values()]),
        ('box AP on test tiles', [f'{run.val[-1]["coco/bbox_mAP"]:.3f}' for run in runs.values()]),
        *(
            (f'drift of {part} layers', [f'{depth(run, part):.1%}' for run in runs.values()])
            for part in ('shallow', 'middle', 'deep')
        ),
        ('agreement with the ImageNet classifier, as it is', [f'{run.agreement:.1%}' for run in runs.values()]),
        (
            '... with its BatchNorm statistics put back',
            [f'{run.agreement_old_statistics:.1%}' for run in runs.values()],
        ),
    ]


def show_tables(runs: dict[str, Run], photos: int) -> None:
    table = Table(title='Mask R-CNN (ImageNet MobileNetV2) on nuclei, one seed')
    table.add_column('')
    for name in runs:
        table.add_column(name, justify='right')
    for label, values in result_rows(runs):
        table.add_row(label, *values)
    console.print(table)
    layers = Table(title='drift from the pre-trained weights, per layer')
    layers.add_column('layer')
    for name in runs:
        layers.add_column(name, justify='right')
    for layer in next(iter(runs.values())).drift:
        layers.add_row(str(layer), *(f'{run.drift[layer]:.1%}' for run in runs.values()))
    console.print(layers)
    console.print(
        f'AP: COCO, 33 nuclei on {TEST_TILES} test tiles. Agreement: top-1, on {photos} crops of real photos. '
        'Drift: ||theta - theta_0|| / ||theta_0||.'
    )


def draw_report(runs: dict[str, Run], data: Path, out: Path, note: str) -> None:
    figures = []
    figure, axes = plt.subplots(1, 3, figsize=(15, 4))
    for name, run in runs.items():
        axes[0].plot(
            [row['step'] for row in run.train], [row['loss'] for row in run.train], color=COLOURS[name], label=name
        )
        axes[1].plot(
            [row['step'] for row in run.val], [row['coco/segm_mAP'] for row in run.val], 'o-', color=COLOURS[name]
        )
        axes[2].plot(list(run.drift), [100 * value for value in run.drift.values()], 'o-', color=COLOURS[name])
    for axis, title, x, y in zip(
        axes,
        ('Training loss', 'Mask AP on test tiles', 'Drift from the pre-trained weights'),
        ('iteration', 'epoch', 'layer (0 is nearest the input)'),
        ('', '', '% of their norm'),
    ):
        axis.set(title=title, xlabel=x, ylabel=y)
        axis.grid(alpha=0.3)
    axes[0].legend()
    axes[2].xaxis.get_major_locator().set_params(integer=True)
    figures.append(('Training and drift', figure))
    figures.append(('Predictions on test tiles (score above 0.5)', draw_predictions(runs, data)))
    rows = ''.join(
        f'<tr><td>{label}</td>' + ''.join(f'<td>{value}</td>' for value in values) + '</tr>'
        for label, values in result_rows(runs)
    )
    images = ''
    for title, figure in figures:
        buffer = io.BytesIO()
        figure.savefig(buffer, format='png', dpi=110, bbox_inches='tight')
        plt.close(figure)
        images += f'<h2>{title}</h2><img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    header = ''.join(f'<th>{name}</th>' for name in runs)
    out.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>olor_mm demo</title><style>body{{font:16px '
        'sans-serif;max-width:75em;margin:2em auto;padding:0 1em}img{max-width:100%}td,th{padding:.3em 1em;'
        'border-bottom:1px solid #ccc;text-align:right}td:first-child{text-align:left}</style><h1>Mask R-CNN on '
        f'nuclei: AdamW and AdamW-OLOR</h1><p>{note}</p><table><tr><th></th>{header}</tr>{rows}</table>{images}'
        '</html>'
    )


def draw_predictions(runs: dict[str, Run], data: Path) -> plt.Figure:
    from mmdet.apis import inference_detector
    from pycocotools.coco import COCO

    coco = COCO(data / 'nuclei/test.json')
    tiles = coco.loadImgs(coco.getImgIds())[:TEST_TILES]
    figure, axes = plt.subplots(
        len(runs) + 1, len(tiles), figsize=(3.2 * len(tiles), 2.6 * (len(runs) + 1)), squeeze=False
    )
    for column, tile in enumerate(tiles):
        file = str(data / 'nuclei' / tile['file_name'])
        masks = {'annotated': [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(tile['id']))]}
        for name, run in runs.items():
            found = inference_detector(run.model, file).pred_instances
            masks[name] = list(found.masks[found.scores > 0.5].cpu().numpy())
        for row, (name, instances) in enumerate(masks.items()):
            axis = axes[row][column]
            axis.imshow(cv2.imread(file, cv2.IMREAD_GRAYSCALE), cmap='gray')
            for mask in instances:
                axis.contour(mask, levels=[0.5], colors=COLOURS.get(name, '#55a868'), linewidths=1.2)
            axis.set(title=f'{name}: {len(instances)} nuclei', xticks=[], yticks=[])
    figure.tight_layout()
    return figure


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
        runs = {name: evaluate(config, out / Path(config).stem, data, classifier) for name, config in RUNS.items()}
    show_tables(runs, len(classifier.photos))
    console.rule('4/4 report')
    caution = (
        f'One seed, {TEST_TILES} test tiles: this shows the tools at work, it is no evidence for either optimizer.'
    )
    note = f'{caution} Agreement is measured on {len(classifier.photos)} crops of real photos.'
    with quiet():
        draw_report(runs, data, out / 'report.html', note)
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
