# ImageNet ResNet-50 -> RetinaNet on your own classes.
_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    '../../_base_/rollback.py',
    '../../_base_/datasets/coco_format.py',
    '../../_base_/schedules/finetune_12e.py',
]

num_classes = len(_base_.custom.classes)
model = dict(bbox_head=dict(num_classes=num_classes))

train_dataloader = dict(batch_size=4, dataset=_base_.custom_train_set)
val_dataloader = dict(dataset=_base_.custom_val_set)
test_dataloader = val_dataloader
val_evaluator = _base_.custom_evaluator
test_evaluator = val_evaluator

# AdamW at the rate of the OLOR reference in place of SGD: it suits small data sets without tuning of its own
optim_wrapper = dict(_delete_=True, **_base_.olor_optim_wrapper)
train_cfg = dict(_delete_=True, **_base_.finetune_train_cfg)
param_scheduler = _base_.finetune_param_scheduler
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=_base_.finetune_checkpoint)
