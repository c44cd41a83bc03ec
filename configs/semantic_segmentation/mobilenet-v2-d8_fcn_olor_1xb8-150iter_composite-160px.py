# ImageNet MobileNetV2 -> FCN on a synthetic composite of real crops: background and 10 classes of digits.
# Data and weights: tools/dataset_converters/embedded.py
_base_ = ['mmseg::mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py', '../_base_/rollback.py']

classes = ('background', *(f'digit {digit}' for digit in range(10)))
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(
        norm_cfg=norm_cfg,
        init_cfg=dict(type='Pretrained', checkpoint='data/weights/mobilenet_v2_mmseg.pth')),
    decode_head=dict(num_classes=len(classes), channels=64, norm_cfg=norm_cfg),
    auxiliary_head=dict(num_classes=len(classes), channels=64, norm_cfg=norm_cfg))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(160, 160), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(160, 160), cat_max_ratio=0.99),
    dict(type='PackSegInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
palette = [[0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48], [145, 30, 180],
           [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 212]]
dataset = dict(
    _delete_=True, type='BaseSegDataset', data_root='data/composite', metainfo=dict(classes=classes, palette=palette),
    img_suffix='.png', seg_map_suffix='.png')
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        **dataset, data_prefix=dict(img_path='train', seg_map_path='train_semantic'), pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=1,
    dataset=dict(**dataset, data_prefix=dict(img_path='test', seg_map_path='test_semantic'), pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(_delete_=True, **_base_.olor_optim_wrapper)
optim_wrapper['optimizer']['lr'] = 1e-3
train_cfg = dict(max_iters=150, val_interval=75)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0., begin=0, end=150, by_epoch=False)]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=75, max_keep_ckpts=2))
env_cfg = dict(dist_cfg=dict(backend='gloo'))
