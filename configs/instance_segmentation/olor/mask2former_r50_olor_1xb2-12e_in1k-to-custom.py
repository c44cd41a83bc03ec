# ImageNet ResNet-50 -> Mask2Former on your own classes.
_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    '../../_base_/rollback.py',
    '../../_base_/datasets/coco_format.py',
    '../../_base_/schedules/finetune_12e.py',
]

num_classes = len(_base_.custom.classes)
model = dict(
    panoptic_head=dict(num_things_classes=num_classes, loss_cls=dict(class_weight=[1.0] * num_classes + [0.1])),
    panoptic_fusion_head=dict(num_things_classes=num_classes),
)

train_dataloader = dict(batch_size=2, dataset=_base_.custom_train_set)
val_dataloader = dict(dataset=_base_.custom_val_set)
test_dataloader = val_dataloader
val_evaluator = _base_.custom_evaluator
test_evaluator = val_evaluator

# stock AdamW, its clipping and its rates (a tenth in the backbone); batch 2 of 16
optim_wrapper = dict(
    constructor='OLOROptimWrapperConstructor',
    optimizer=dict(type='AdamWOLOR', lr=1e-4),
    paramwise_cfg=dict(rollback=_base_.rollback),
)
train_cfg = dict(_delete_=True, **_base_.finetune_train_cfg)
param_scheduler = _base_.finetune_param_scheduler
auto_scale_lr = dict(base_batch_size=2)
default_hooks = dict(checkpoint=dict(by_epoch=True, **_base_.finetune_checkpoint))
log_processor = dict(by_epoch=True)  # the stock schedule counts iterations
