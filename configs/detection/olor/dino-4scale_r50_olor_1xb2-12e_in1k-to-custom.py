# ImageNet ResNet-50 -> DINO on your own classes.
_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../../_base_/rollback.py',
    '../../_base_/datasets/coco_format.py',
    '../../_base_/schedules/finetune_12e.py',
]

num_classes = len(_base_.custom.classes)
model = dict(bbox_head=dict(num_classes=num_classes))

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
default_hooks = dict(checkpoint=_base_.finetune_checkpoint)
