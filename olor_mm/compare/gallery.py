"""Draws predictions of several fine-tuned models on the same images, side by side. Needs torch and matplotlib."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

if TYPE_CHECKING:  # drawing predictions needs MMEngine, importing this does not
    from mmengine.config import Config

LONG_SIDE = 480  # pixels; small images are enlarged to it, so that lines and labels do not cover them
PACK = dict(mmpretrain='PackInputs', mmdet='PackDetInputs', mmseg='PackSegInputs')
VISUALIZER = dict(mmdet='DetLocalVisualizer', mmseg='SegLocalVisualizer')
IGNORED = 255  # label of mmseg for pixels without a class

Drawing = tuple[np.ndarray, str]  # RGB of shape (height, width, 3), and caption


class Gallery:
    """Images spread evenly over a run's validation data, drawn with annotations or with predictions of models."""

    def __init__(self, cfg: 'Config', number: int, score_thr: float = 0.3):
        from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope

        cfg = deepcopy(cfg)  # the libraries write into it
        self.scope = cfg.get('default_scope')
        if self.scope not in PACK:
            raise ValueError(f'default_scope={self.scope!r}: predictions can be drawn for {", ".join(PACK)}')
        self.score_thr = score_thr
        with DefaultScope.overwrite_default_scope(self.scope):
            dataset = DATASETS.build(cfg.val_dataloader.dataset)
            self.indices = np.linspace(0, len(dataset) - 1, min(number, len(dataset))).round().astype(int).tolist()
            self.meta = {'palette': 'random', **dataset.metainfo}
            if self.scope in VISUALIZER:
                self.visualizer = VISUALIZERS.get(f'{self.scope}.{VISUALIZER[self.scope]}')(alpha=0.5)
                self.visualizer.dataset_meta = self.meta
            infos = [dataset.get_data_info(index) for index in self.indices]
            self.paths = [info['img_path'] for info in infos]
            self.images, self.samples = zip(*(self._load(cfg, info) for info in infos))

    def _load(self, cfg: 'Config', info: dict) -> tuple[np.ndarray, object]:
        """An image in RGB and its annotation, both enlarged."""
        from mmengine.dataset import Compose

        dataset = cfg.val_dataloader.dataset
        while 'pipeline' not in dataset:  # a wrapper
            dataset = dataset.dataset if 'dataset' in dataset else dataset.datasets[0]
        load = Compose(dataset.pipeline[:1])
        height, width = load(dict(info))['img'].shape[:2]
        factor = max(1, LONG_SIDE / max(height, width))
        steps: list[dict] = [dict(type='Resize', scale=(round(width * factor), round(height * factor)))]
        if self.scope == 'mmdet':
            with_mask = any('mask' in instance for instance in info['instances'])
            steps.insert(0, dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask))
        elif self.scope == 'mmseg':
            steps.insert(0, dict(type='LoadAnnotations'))
        packed = Compose([*steps, dict(type=PACK[self.scope], meta_keys=('img_path',))])(load(dict(info)))
        sample = packed['data_samples']
        if self.scope == 'mmdet':  # its visualizer takes tensors
            sample.gt_instances.bboxes = sample.gt_instances.bboxes.tensor
        image = packed['inputs'].permute(1, 2, 0).numpy()
        return (image[..., ::-1] if image.shape[2] == 3 else np.repeat(image[..., :1], 3, 2)), sample

    def annotated(self) -> list[Drawing]:
        """Each image with its annotation, and a numbered caption."""
        drawn = [self._drawn(image, sample) for image, sample in zip(self.images, self.samples)]
        return [(image, f'image {n}' + f': {caption}' * bool(caption)) for n, (image, caption) in enumerate(drawn, 1)]

    @torch.no_grad()
    def predicted(self, cfg: 'Config', checkpoint: Path) -> list[Drawing]:
        """Each image with the predictions of a model, whose own pipeline prepares the images, and a caption."""
        from mmengine.dataset import pseudo_collate
        from mmengine.model import revert_sync_batchnorm
        from mmengine.registry import DATASETS, MODELS, DefaultScope
        from mmengine.runner import load_checkpoint

        cfg = deepcopy(cfg)
        with DefaultScope.overwrite_default_scope(self.scope):
            if cfg.get('data_preprocessor'):  # as Runner does
                cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
            model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
            load_checkpoint(model, str(checkpoint), map_location='cpu', strict=True)
            dataset = DATASETS.build(cfg.val_dataloader.dataset)
            drawings = []
            for index, path, image, annotation in zip(self.indices, self.paths, self.images, self.samples):
                if index >= len(dataset) or dataset.get_data_info(index)['img_path'] != path:
                    raise ValueError(f'image {index} of val_dataloader is not {path}, as it is of the first method')
                packed = dataset[index]
                self._enlarge(packed['data_samples'], *image.shape[:2])
                sample = model.test_step(pseudo_collate([packed]))[0]
                drawings.append(self._drawn(image, sample, annotation))
        return drawings

    def _enlarge(self, sample, height: int, width: int) -> None:
        """Have the model scale its predictions to this size instead of the size of the file."""
        if self.scope == 'mmdet':
            old_height, old_width = sample.ori_shape[:2]
            by_width, by_height = sample.scale_factor[:2]
            sample.set_metainfo(dict(scale_factor=(by_width * old_width / width, by_height * old_height / height)))
        sample.set_metainfo(dict(ori_shape=(height, width)))

    def _drawn(self, image: np.ndarray, sample, annotation=None) -> Drawing:
        """The image with the predictions in a sample, or without an annotation to compare them with, its own one."""
        truth = annotation is None
        if self.scope == 'mmpretrain':
            labels, classes = sample.gt_label if truth else sample.pred_label, self.meta.get('classes')
            caption = ', '.join(str(classes[label] if classes else label) for label in labels.tolist())
            if not truth:
                is_right = set(labels.tolist()) == set(annotation.gt_label.tolist())
                caption = f'{"✓" if is_right else "✗"} {caption} ({sample.pred_score[labels].max().item():.0%})'
            return image, caption
        options = dict(pred_score_thr=self.score_thr) if self.scope == 'mmdet' else dict(with_labels=False)
        self.visualizer.add_datasample('', image, sample, draw_gt=truth, draw_pred=not truth, **options)
        drawn = self.visualizer.get_image()
        if self.scope == 'mmdet':
            number = len(sample.gt_instances) if truth else (sample.pred_instances.scores > self.score_thr).sum()
            return drawn, f'{number} objects' if number != 1 else '1 object'
        if truth:
            return drawn, ''
        right = (sample.pred_sem_seg.data.cpu() == annotation.gt_sem_seg.data)[annotation.gt_sem_seg.data != IGNORED]
        return drawn, f'{right.double().mean():.0%} of pixels right'


def draw_predictions(gallery: Gallery, drawings: Mapping[str, list[Drawing]]) -> Figure:
    """Plot a named row per method and a column per image, with a legend of the classes for segmentation."""
    columns = len(gallery.indices)
    shape = max(image.shape[0] / image.shape[1] for image in gallery.images)
    side = min(11 / columns, 2.6)
    figure = Figure(figsize=(0.4 + side * columns, 0.4 + (side * shape + 0.22) * len(drawings)), layout='constrained')
    panels = figure.subplots(len(drawings), columns, squeeze=False)
    for row, (name, images) in zip(panels, drawings.items()):
        row[0].set_ylabel(name, fontsize=10)
        for axes, (image, caption) in zip(row, images):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            axes.set_title(caption, fontsize=9, pad=3)
    if gallery.scope == 'mmseg':  # in other tasks, drawings or captions name the classes
        colours = zip(np.array(gallery.meta['palette']) / 255, gallery.meta['classes'])
        legend = [Patch(facecolor=colour, edgecolor='black', label=name) for colour, name in colours]
        figure.legend(handles=legend, loc='outside lower left', ncols=8, frameon=False)
    return figure
