# COCO RTMDet-s -> your own classes.
_base_ = './rtmdet_s_olor_1xb8-12e_in1k-to-custom.py'

model = dict(backbone=dict(init_cfg=None))  # the checkpoint brings the backbone as well
load_from = (
    'https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet_s_8xb32-300e_coco/'
    'rtmdet_s_8xb32-300e_coco_20220905_161602-387a891e.pth'
)
# Neck and head are pre-trained too, so their level is 0.3 of max_level. rollback=dict(min_level=0) leaves them free.
