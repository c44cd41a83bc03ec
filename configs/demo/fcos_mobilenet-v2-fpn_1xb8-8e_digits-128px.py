# The demo's trained model: ImageNet MobileNetV2 -> FCOS on photos with the digits 0, 2 and 4.
# Data and weights: tools/dataset_converters/embedded.py
#
# FCOS trains without any compiled operator of mmcv on CPU. Digits are 30 to 50 pixels high, so strides 8 to 32 will do.
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'

classes = ('digit 0', 'digit 2', 'digit 4')
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(2, 4, 7),
        frozen_stages=2,  # saves a quarter of the time
        init_cfg=dict(type='Pretrained', checkpoint='data/weights/mobilenet_v2_mmdet.pth'),
    ),
    neck=dict(in_channels=[32, 96, 1280], out_channels=64, start_level=0, add_extra_convs=False, num_outs=3),
    bbox_head=dict(
        num_classes=len(classes),
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        strides=[8, 16, 32],
        regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
        center_sampling=True,
        norm_on_bbox=True,
        centerness_on_reg=True,
        loss_cls=dict(alpha=0.7),  # so that most right boxes have a score above 0.5, the threshold of `label`
        loss_bbox=dict(_delete_=True, type='GIoULoss'),
    ),
    test_cfg=dict(nms=dict(class_agnostic=True)),  # nothing is two digits
)

data_root = 'data/demo/old/'
load = dict(type='LoadImageFromFile')
resize = dict(type='Resize', scale=(128, 128), keep_ratio=True)
pack = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
dataset = dict(data_root=data_root, metainfo=dict(classes=classes), data_prefix=dict(img=''))
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        **dataset,
        ann_file='train.json',
        filter_cfg=dict(min_size=0),
        pipeline=[load, dict(type='LoadAnnotations', with_bbox=True), resize, pack],
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(**dataset, ann_file='test.json', pipeline=[load, resize, pack]),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'test.json')
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
train_cfg = dict(max_epochs=8, val_interval=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=8, T_max=8, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=8))
randomness = dict(seed=0)
