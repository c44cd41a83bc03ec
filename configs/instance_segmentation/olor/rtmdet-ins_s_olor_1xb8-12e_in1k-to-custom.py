# ImageNet CSPNeXt-s -> RTMDet-Ins-s on your own classes.
_base_ = [
    'mmdet::rtmdet/rtmdet-ins_s_8xb32-300e_coco.py',
    '../../_base_/rollback.py',
    '../../_base_/datasets/coco_format.py',
    '../../_base_/schedules/finetune_12e.py',
]

num_classes = len(_base_.custom.classes)
model = dict(bbox_head=dict(num_classes=num_classes))

train_dataloader = dict(batch_size=8, num_workers=4, dataset=_base_.custom_train_set)
val_dataloader = dict(dataset=_base_.custom_val_set)
test_dataloader = val_dataloader
val_evaluator = _base_.custom_evaluator
test_evaluator = val_evaluator

# stock AdamW with its parameter settings; 0.004 at batch 256 is 1.25e-4 at batch 8
optim_wrapper = dict(
    constructor='OLOROptimWrapperConstructor',
    optimizer=dict(type='AdamWOLOR', lr=1e-4),
    paramwise_cfg=dict(rollback=_base_.rollback),
)
train_cfg = dict(_delete_=True, **_base_.finetune_train_cfg)
param_scheduler = _base_.finetune_param_scheduler
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=_base_.finetune_checkpoint)
custom_hooks = [
    _base_.custom_hooks[0],  # EMAHook
    dict(type='PipelineSwitchHook', switch_epoch=10, switch_pipeline=_base_.train_pipeline_stage2),  # for the last two
]
