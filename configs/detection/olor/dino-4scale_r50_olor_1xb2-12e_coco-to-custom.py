# COCO DINO -> your own classes.
_base_ = './dino-4scale_r50_olor_1xb2-12e_in1k-to-custom.py'

model = dict(backbone=dict(init_cfg=None))  # the checkpoint brings the backbone as well
load_from = (
    'https://download.openmmlab.com/mmdetection/v3.0/dino/dino-4scale_r50_8xb2-12e_coco/'
    'dino-4scale_r50_8xb2-12e_coco_20221202_182705-55b2bba2.pth'
)
optim_wrapper = dict(paramwise_cfg=dict(rollback=dict(min_level=1e-3)))  # neck and head are pre-trained too
