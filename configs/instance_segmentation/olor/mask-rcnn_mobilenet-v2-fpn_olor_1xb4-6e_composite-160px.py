# ImageNet MobileNetV2 -> Mask R-CNN on a synthetic composite of real crops, 10 classes of digits.
# Data and weights: tools/dataset_converters/embedded.py
#
# Neck, heads and samplers are those of the stock config, cut down until an iteration takes about a second on two CPU
# cores. On a GPU leave out everything in `model` but the backbone, the neck's in_channels and the number of classes.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '../../_base_/rollback.py']

num_classes = 10
model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(1, 2, 4, 7),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='data/weights/mobilenet_v2_mmdet.pth'),
    ),
    neck=dict(in_channels=[24, 32, 96, 1280], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=num_classes),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=num_classes),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=200)),
)

scale = (160, 160)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
metainfo = dict(classes=tuple(f'digit {digit}' for digit in range(num_classes)))
data_root = 'data/composite/'
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img=''),
        metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=True, min_size=0),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root, ann_file='test.json', data_prefix=dict(img=''), metainfo=metainfo, pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'test.json')
test_evaluator = val_evaluator

optim_wrapper = dict(_delete_=True, **_base_.olor_optim_wrapper, clip_grad=dict(max_norm=10.0))
optim_wrapper['optimizer']['lr'] = 1e-3
train_cfg = dict(max_epochs=6, val_interval=3)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=6, T_max=6, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
custom_hooks = [
    dict(type='ResumableRandomnessHook'),  # a resumed run ends where the uninterrupted one would
    dict(type='SyncBuffersHook'),  # several processes end with the same BatchNorm statistics
]
