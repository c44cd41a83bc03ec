# ImageNet ResNet-50 -> DeepLabV3+ on your own classes.
_base_ = [
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512.py',
    '../../_base_/rollback.py',
    '../../_base_/datasets/image_mask_folder.py',
    '../../_base_/schedules/finetune_20k.py',
]

num_classes = len(_base_.custom.classes)
model = dict(
    pretrained=None,  # stock configs name the checkpoint here; as init_cfg it can be overridden like any other
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet50_v1c')),
    decode_head=dict(num_classes=num_classes),
    auxiliary_head=dict(num_classes=num_classes),
)

train_dataloader = dict(batch_size=4, dataset=dict(_delete_=True, **_base_.custom_train_set))
val_dataloader = dict(dataset=dict(_delete_=True, **_base_.custom_val_set))
test_dataloader = val_dataloader

# AdamW at the rate of the OLOR reference in place of SGD: it suits small data sets without tuning of its own
optim_wrapper = dict(_delete_=True, **_base_.olor_optim_wrapper)
train_cfg = dict(_delete_=True, **_base_.finetune_train_cfg)
param_scheduler = _base_.finetune_param_scheduler
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=_base_.finetune_checkpoint)
