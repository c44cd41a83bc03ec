"""Draws what detectors find in the same images: a row for each detector."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from mmdet.apis import inference_detector, init_detector
from torchvision.ops import box_iou

from olor_mm.compare.figures import COLOURS

IMAGES = 6
SCORE = 0.3  # from which on a detection is drawn, as mmdet draws them
COLD, WARM = ([COLOURS[number] for number in numbers] for numbers in ((0, 5, 2), (1, 6, 3)))  # of old and new classes
LOOKS = dict(right=dict(linewidth=2), wrong=dict(linestyle='--'), missed=dict(linestyle=':'))

Box = tuple[str, list[float]]  # its class, and x1, y1, x2, y2


def draw(models: Mapping[str, tuple], folders: Sequence[Path], classes: Sequence[str]) -> Figure:
    """Plot the first test images with the boxes that models find.

    Args:
        models (Mapping[str, tuple]): Config and checkpoint by the text beside a row.
        folders (Sequence[Path]): Of the same test images, with the boxes of different classes.
        classes (Sequence[str]): Three old ones and three new ones.
    """
    torch.set_num_threads(1)  # small images gain nothing from more
    colours = dict(zip(classes, [*COLD, *WARM]))
    figure = Figure(figsize=(1.5 * IMAGES + 0.6, 1.5 * len(models) + 0.5), layout='constrained')
    for row, (text, (cfg, checkpoint)) in zip(figure.subplots(len(models), IMAGES), models.items()):
        row[0].set_ylabel(text, fontsize=9)
        model = init_detector(cfg, str(checkpoint), device='cpu')
        for number, axes in enumerate(row):
            file, truth = annotated(folders, number)
            axes.imshow(imread(file), interpolation='nearest')
            axes.set(xticks=[], yticks=[])
            for kind, boxes in judged(detected(model, file), truth).items():
                for name, box in boxes:
                    draw_box(axes, kind, name, box, colours[name])
    group = dict.fromkeys(COLD, 'old') | dict.fromkeys(WARM, 'new')
    legend = [Patch(facecolor=colour, label=f'{name} ({group[colour]})') for name, colour in colours.items()]
    legend += [Line2D([], [], color='black', label=kind, **look) for kind, look in LOOKS.items()]
    look = dict(ncols=len(legend), frameon=False, fontsize=8, handlelength=1.5, columnspacing=1)
    figure.legend(handles=legend, loc='outside lower center', **look)
    return figure


def annotated(folders: Sequence[Path], number: int) -> tuple[Path, list[Box]]:
    """The file of a test image, and its boxes in all folders."""
    boxes = []
    for folder in folders:
        content = json.loads((folder / 'test.json').read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        for found in content['annotations']:
            if found['image_id'] == number:
                x, y, width, height = found['bbox']
                boxes.append((names[found['category_id']], [x, y, x + width, y + height]))
    return folder / content['images'][number]['file_name'], boxes


def detected(model, file: Path) -> list[Box]:
    found = inference_detector(model, str(file)).pred_instances
    found = found[found.scores > SCORE]
    return [(model.dataset_meta['classes'][label], box.tolist()) for label, box in zip(found.labels, found.bboxes)]


def judged(found: Sequence[Box], truth: Sequence[Box]) -> dict[str, list[Box]]:
    """The boxes that are right, at an IoU from 0.5, those that are wrong, and those that were missed."""
    boxes: dict[str, list[Box]] = dict(right=[], wrong=[], missed=list(truth))
    for name, box in found:
        hits = [(other, at) for other, at in boxes['missed'] if other == name and overlap(at, box) >= 0.5]
        boxes['right' if hits else 'wrong'].append((name, box))
        boxes['missed'] = [other for other in boxes['missed'] if other not in hits[:1]]
    return boxes


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    return box_iou(torch.tensor([first]), torch.tensor([second])).item()


def draw_box(axes, kind: str, name: str, box: Sequence[float], colour: str) -> None:
    x1, y1, x2, y2 = box
    look = dict(LOOKS[kind], edgecolor=colour if kind == 'right' else 'white')
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **look))
    if kind != 'missed':
        label = dict(facecolor=look['edgecolor'], edgecolor='none', pad=1)
        above = dict(y=y1, verticalalignment='bottom') if y1 > 12 else dict(y=y2, verticalalignment='top')
        axes.text(x=x1, s=name, bbox=label, fontsize=7, clip_on=True, **above)
