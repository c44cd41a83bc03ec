# ImageNet MobileNetV2 -> MNIST digits, 50 images a class. Data and weights: tools/dataset_converters/embedded.py
_base_ = ['mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py', '../../_base_/rollback.py']

model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint='data/weights/mobilenet_v2_mmpretrain.pth', prefix='backbone.')
    ),
    head=dict(num_classes=10, topk=(1,)),
)
data_preprocessor = dict(num_classes=10)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=64),
    dict(type='RandomCrop', crop_size=64, padding=4),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
train_dataloader = dict(
    num_workers=1,
    persistent_workers=False,
    dataset=dict(_delete_=True, type='CustomDataset', data_root='data/digits/train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=1,
    persistent_workers=True,
    dataset=dict(_delete_=True, type='CustomDataset', data_root='data/digits/test', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(_delete_=True, **_base_.olor_optim_wrapper)
optim_wrapper['optimizer']['lr'] = 1e-3
train_cfg = dict(max_epochs=10, val_interval=5)
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=10, by_epoch=True, convert_to_iter_based=True)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
custom_hooks = [
    dict(type='ResumableRandomnessHook'),  # a resumed run ends where the uninterrupted one would
    dict(type='SyncBuffersHook'),  # several processes end with the same BatchNorm statistics
]
