"""`python -m olor_mm label`, run on stock models."""

import json
from pathlib import Path

from conftest import tool

DETECTORS = dict(
    retinanet='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    faster_rcnn='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    detr='mmdet::detr/detr_r18_8xb2-500e_coco.py',
    mask_rcnn='mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    solo='mmdet::solo/solo_r50_fpn_1x_coco.py',
    rtmdet_ins='mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
)
SEGMENTERS = dict(
    fcn='mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    segformer='mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    mask2former='mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
)
CLASSIFIERS = dict(
    resnet='mmpretrain::resnet/resnet18_8xb32_in1k.py',
    vit='mmpretrain::deit/deit-tiny_4xb256_in1k.py',
    conformer='mmpretrain::conformer/conformer-tiny-p16_8xb128_in1k.py',
)
OLD = ['cat', 'B', 'person']
RETINANET, FCN, RESNET = DETECTORS['retinanet'], SEGMENTERS['fcn'], CLASSIFIERS['resnet']


def label(*arguments, check=True, **environment):
    return tool('olor_mm', 'label', *arguments, check=check, **environment)


def state(folder: Path) -> dict:
    """Every file below a folder, and when it was changed."""
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.rglob('*') if file.is_file()}


def labels_of(content: dict) -> list[tuple]:
    """What was added: name of the image, class, box, whether it is ignored."""
    names = {c['id']: c['name'] for c in content['categories']}
    files = {image['id']: image['file_name'] for image in content['images']}
    return [
        (files[a['image_id']], names[a['category_id']], a['bbox'], a['iscrowd'], a['score'])
        for a in content['annotations']
        if a.get('source') == 'olor_mm'
    ]


def edited(file: Path, change) -> dict:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return content
