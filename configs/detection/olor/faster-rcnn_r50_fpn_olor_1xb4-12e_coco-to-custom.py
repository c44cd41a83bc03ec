# COCO Faster R-CNN -> your own classes.
_base_ = './faster-rcnn_r50_fpn_olor_1xb4-12e_in1k-to-custom.py'

model = dict(backbone=dict(init_cfg=None))  # the checkpoint brings the backbone as well
load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/'
    'faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth'
)
# Neck and head are pre-trained too, so their level is 0.3 of max_level. rollback=dict(min_level=0) leaves them free.
