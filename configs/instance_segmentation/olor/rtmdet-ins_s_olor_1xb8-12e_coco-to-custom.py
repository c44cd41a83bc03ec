# COCO RTMDet-Ins-s -> your own classes.
_base_ = './rtmdet-ins_s_olor_1xb8-12e_in1k-to-custom.py'

model = dict(backbone=dict(init_cfg=None))  # the checkpoint brings the backbone as well
load_from = (
    'https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet-ins_s_8xb32-300e_coco/'
    'rtmdet-ins_s_8xb32-300e_coco_20221121_212604-fdc5d7ec.pth'
)
# Neck and head are pre-trained too, so their level is 0.3 of max_level. rollback=dict(min_level=0) leaves them free.
