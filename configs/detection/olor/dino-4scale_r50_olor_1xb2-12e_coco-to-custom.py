# COCO DINO -> your own classes.
_base_ = './dino-4scale_r50_olor_1xb2-12e_in1k-to-custom.py'

model = dict(backbone=dict(init_cfg=None))  # the checkpoint brings the backbone as well
load_from = (
    'https://download.openmmlab.com/mmdetection/v3.0/dino/dino-4scale_r50_8xb2-12e_coco/'
    'dino-4scale_r50_8xb2-12e_coco_20221202_182705-55b2bba2.pth'
)
# Neck and head are pre-trained too, so their level is 0.3 of max_level. rollback=dict(min_level=0) leaves them free.
