# ADE20K UPerNet with Swin-T -> your own classes.
_base_ = './swin-tiny-patch4-window7_upernet_olor_1xb4-20k_in1k-to-custom-512x512.py'

model = dict(backbone=dict(init_cfg=None))  # the checkpoint brings the backbone as well
load_from = (
    'https://download.openmmlab.com/mmsegmentation/v0.5/swin/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K/'
    'upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_20210531_112542-e380ad3e.pth'
)
# Neck and head are pre-trained too, so their level is 0.3 of max_level. rollback=dict(min_level=0) leaves them free.
