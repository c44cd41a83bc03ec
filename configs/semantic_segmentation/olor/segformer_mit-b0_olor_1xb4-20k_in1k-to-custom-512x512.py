# ImageNet MiT-B0 -> SegFormer on your own classes.
_base_ = [
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    '../../_base_/rollback.py',
    '../../_base_/datasets/image_mask_folder.py',
    '../../_base_/schedules/finetune_20k.py',
]

num_classes = len(_base_.custom.classes)
model = dict(decode_head=dict(num_classes=num_classes))

train_dataloader = dict(batch_size=4, dataset=dict(_delete_=True, **_base_.custom_train_set))
val_dataloader = dict(dataset=dict(_delete_=True, **_base_.custom_val_set))
test_dataloader = val_dataloader

# stock AdamW at its rates, which are for batch 16: ten times higher in the head
optim_wrapper = dict(
    constructor='OLOROptimWrapperConstructor',
    optimizer=dict(type='AdamWOLOR', lr=6e-5),
    paramwise_cfg=dict(rollback=_base_.rollback),
)
train_cfg = dict(_delete_=True, **_base_.finetune_train_cfg)
param_scheduler = _base_.finetune_param_scheduler
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=_base_.finetune_checkpoint)
