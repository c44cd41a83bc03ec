# ImageNet MobileNetV2 -> FCN that tells nuclei from background. Data and weights: tools/dataset_converters/embedded.py
_base_ = ['mmseg::mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py', '../../_base_/rollback.py']

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        norm_cfg=norm_cfg, init_cfg=dict(type='Pretrained', checkpoint='data/weights/mobilenet_v2_mmseg.pth')
    ),
    decode_head=dict(num_classes=2, channels=64, norm_cfg=norm_cfg),
    auxiliary_head=dict(num_classes=2, channels=64, norm_cfg=norm_cfg),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(128, 128), ratio_range=(1.0, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(128, 128)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root='data/nuclei',
    img_suffix='.png',
    seg_map_suffix='.png',
    metainfo=dict(classes=('background', 'nucleus'), palette=[[0, 0, 0], [230, 25, 75]]),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(**dataset, data_prefix=dict(img_path='train', seg_map_path='train_semantic'), pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(**dataset, data_prefix=dict(img_path='test', seg_map_path='test_semantic'), pipeline=test_pipeline),
)
test_dataloader = val_dataloader

optim_wrapper = dict(_delete_=True, **_base_.olor_optim_wrapper)
optim_wrapper['optimizer']['lr'] = 1e-3
train_cfg = dict(max_iters=80, val_interval=40)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=80, by_epoch=False)]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=40, max_keep_ckpts=2))
randomness = dict(seed=0)
custom_hooks = [dict(type='ResumableRandomnessHook')]  # a resumed run ends where the uninterrupted one would
