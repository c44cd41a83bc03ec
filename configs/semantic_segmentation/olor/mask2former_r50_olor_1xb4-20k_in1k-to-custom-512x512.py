# ImageNet ResNet-50 -> Mask2Former on your own classes.
_base_ = [
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    '../../_base_/datasets/image_mask_folder.py',
    '../../_base_/schedules/finetune_20k.py',
]

num_classes = len(_base_.custom.classes)
model = dict(
    decode_head=dict(num_classes=num_classes, loss_cls=dict(class_weight=[1.0] * num_classes + [0.1])),
)

train_dataloader = dict(batch_size=4, dataset=dict(_delete_=True, **_base_.custom_train_set))
val_dataloader = dict(dataset=dict(_delete_=True, **_base_.custom_val_set))
test_dataloader = val_dataloader

# stock AdamW, its clipping and its rates (a tenth in the backbone), which are for batch 16. Stock custom_imports are
# needed here and two bases must not both have some, hence no _base_/rollback.py
optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    optimizer=dict(type='olor_mm.AdamWOLOR', lr=1e-4),
    paramwise_cfg=dict(rollback=dict(max_level=1e-2)),
)
train_cfg = dict(_delete_=True, **_base_.finetune_train_cfg)
param_scheduler = _base_.finetune_param_scheduler
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=_base_.finetune_checkpoint)
