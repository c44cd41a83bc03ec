# COCO RetinaNet -> your own classes.
_base_ = './retinanet_r50_fpn_olor_1xb4-12e_in1k-to-custom.py'

model = dict(backbone=dict(init_cfg=None))  # the checkpoint brings the backbone as well
load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/'
    'retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth'
)
optim_wrapper = dict(paramwise_cfg=dict(rollback=dict(min_level=1e-3)))  # neck and head are pre-trained too
