"""Predictions side by side are those of the libraries' own inference, for the four tasks."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import CLASSIFICATION, ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import save_checkpoint

from olor_mm.compare.gallery import LONG_SIDE, Gallery, draw_predictions

DETECTION = 'configs/detection/olor/faster-rcnn_mobilenet-v2-fpn_olor_1xb4-12e_trees-320px.py'
INSTANCES = 'configs/instance_segmentation/olor/mask-rcnn_mobilenet-v2-fpn_olor_1xb4-6e_composite-160px.py'
SEMANTIC = 'configs/semantic_segmentation/olor/mobilenet-v2-d8_fcn_olor_1xb8-80iter_nuclei-128px.py'


@pytest.fixture(autouse=True)
def in_repository(data, monkeypatch):
    monkeypatch.chdir(ROOT)


def untrained(config: str, tmp_path):
    """A config and a checkpoint of its model, as a run would leave them."""
    cfg = Config.fromfile(ROOT / config)
    model_cfg = deepcopy(cfg)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        if cfg.get('data_preprocessor'):
            model_cfg.model.data_preprocessor = model_cfg.data_preprocessor
        model = MODELS.build(model_cfg.model)
    model.init_weights()
    file = tmp_path / 'epoch_1.pth'
    save_checkpoint(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('a',)))), str(file))
    return cfg, model.eval(), file


def predictions(gallery: Gallery, monkeypatch, *run) -> tuple[list, list[str]]:
    """The data samples that are drawn, and their captions."""
    samples = []
    drawn = gallery._drawn

    def spy(image, sample, *args, **kwargs):
        samples.append(sample)
        return drawn(image, sample, *args, **kwargs)

    monkeypatch.setattr(gallery, '_drawn', spy)
    return samples, [caption for _, caption in gallery.predicted(*run)]


@pytest.mark.parametrize('config', [DETECTION, INSTANCES])
def test_objects_are_those_of_mmdet_in_the_size_they_are_drawn(config, tmp_path, monkeypatch):
    from mmdet.apis import inference_detector

    cfg, model, file = untrained(config, tmp_path)
    gallery = Gallery(cfg, 2, score_thr=0.99)  # drawing a hundred boxes takes long
    samples, _ = predictions(gallery, monkeypatch, cfg, file)
    model.cfg = cfg
    with DefaultScope.overwrite_default_scope('mmdet'):
        theirs = inference_detector(model, gallery.paths)
    for image, sample, expected in zip(gallery.images, samples, theirs):
        height, width = image.shape[:2]
        assert max(height, width) >= LONG_SIDE
        old_height, old_width = expected.ori_shape
        ratio = torch.tensor([width / old_width, height / old_height] * 2)
        torch.testing.assert_close(sample.pred_instances.scores, expected.pred_instances.scores)
        torch.testing.assert_close(sample.pred_instances.bboxes, expected.pred_instances.bboxes * ratio)
        assert len(sample.pred_instances)
        if config == INSTANCES:
            assert sample.pred_instances.masks.shape[1:] == (height, width)
    with_masks = config == INSTANCES
    assert all(('masks' in truth.gt_instances) == with_masks for truth in gallery.samples)
    boxes = gallery.samples[0].gt_instances.bboxes
    assert boxes.max() > LONG_SIDE / 4 and boxes[:, 2].max() <= gallery.images[0].shape[1]


def test_segments_are_those_of_mmseg_in_the_size_they_are_drawn(tmp_path, monkeypatch):
    from mmseg.apis import inference_model

    cfg, model, file = untrained(SEMANTIC, tmp_path)
    gallery = Gallery(cfg, 2)
    samples, captions = predictions(gallery, monkeypatch, cfg, file)
    model.cfg = cfg
    with DefaultScope.overwrite_default_scope('mmseg'):
        theirs = inference_model(model, gallery.paths)
    for image, sample, expected in zip(gallery.images, samples, theirs):
        assert sample.pred_sem_seg.shape == image.shape[:2] == (384, 480)
        # three times as large: every third pixel, but where the enlarged border runs
        assert (sample.pred_sem_seg.data[:, 1::3, 1::3] == expected.pred_sem_seg.data).double().mean() > 0.98
    shares = [
        (s.pred_sem_seg.data == t.gt_sem_seg.data).double().mean().item() for s, t in zip(samples, gallery.samples)
    ]
    assert captions == [f'{share:.0%} of pixels right' for share in shares]
    [legend] = draw_predictions(gallery, {'annotated': gallery.annotated()}).legends
    assert [text.get_text() for text in legend.get_texts()] == ['background', 'nucleus']


def test_classes_are_those_of_mmpretrain(tmp_path, monkeypatch):
    from mmpretrain.apis import ImageClassificationInferencer

    cfg, model, file = untrained(CLASSIFICATION, tmp_path)
    gallery = Gallery(cfg, 5)
    assert gallery.indices == [0, 250, 500, 749, 999]
    captions = [caption for _, caption in gallery.predicted(cfg, file)]
    model._config = cfg
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = ImageClassificationInferencer(model)(gallery.paths)
    for path, caption, expected in zip(gallery.paths, captions, theirs):
        right = '✓' if path.split('/')[-2] == str(expected['pred_label']) else '✗'
        assert caption == f'{right} {expected["pred_label"]} ({expected["pred_score"]:.0%})'
    assert [caption for _, caption in gallery.annotated()] == [
        f'image {n}: {path.split("/")[-2]}' for n, path in enumerate(gallery.paths, 1)
    ]


def test_what_is_drawn_differs_where_models_do_and_configs_stay_as_they_were(tmp_path):
    cfg, model, file = untrained(SEMANTIC, tmp_path)
    before = cfg.to_dict()
    gallery = Gallery(cfg, 2)
    drawings = {'annotated': gallery.annotated(), 'A': gallery.predicted(cfg, file)}
    assert cfg.to_dict() == before
    assert not np.array_equal(drawings['annotated'][0][0], drawings['A'][0][0])
    figure = draw_predictions(gallery, drawings)
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ['annotated', 'A']
    assert len(figure.axes) == 4


def test_other_data_and_other_libraries_are_refused(tmp_path):
    cfg, model, file = untrained(SEMANTIC, tmp_path)
    gallery = Gallery(cfg, 2)
    cfg.val_dataloader.dataset.data_prefix = cfg.train_dataloader.dataset.data_prefix
    with pytest.raises(ValueError, match=r'image 0 of val_dataloader is not .*0000\.png, as it is of the first method'):
        gallery.predicted(cfg, file)
    cfg.default_scope = 'mmpose'
    with pytest.raises(
        ValueError, match="default_scope='mmpose': predictions can be drawn for mmpretrain, mmdet, mmseg"
    ):
        Gallery(cfg, 2)
