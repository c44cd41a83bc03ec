# ADE20K Mask2Former -> your own classes.
_base_ = './mask2former_r50_olor_1xb4-20k_in1k-to-custom-512x512.py'

model = dict(backbone=dict(init_cfg=None))  # the checkpoint brings the backbone as well
load_from = (
    'https://download.openmmlab.com/mmsegmentation/v0.5/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512/'
    'mask2former_r50_8xb2-160k_ade20k-512x512_20221204_000055-2d1f55f1.pth'
)
# Neck and head are pre-trained too, so their level is 0.3 of max_level. rollback=dict(min_level=0) leaves them free.
