# COCO Cascade Mask R-CNN -> your own classes.
_base_ = './cascade-mask-rcnn_r50_fpn_olor_1xb4-12e_in1k-to-custom.py'

model = dict(backbone=dict(init_cfg=None))  # the checkpoint brings the backbone as well
load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco/'
    'cascade_mask_rcnn_r50_fpn_1x_coco_20200203-9d4dcb24.pth'
)
optim_wrapper = dict(paramwise_cfg=dict(rollback=dict(min_level=1e-3)))  # neck and head are pre-trained too
