# Swin-B, pre-trained on ImageNet-21k and fine-tuned on ImageNet-1k -> your own classes.
_base_ = [
    'mmpretrain::swin_transformer/swin-base_16xb64_in1k.py',
    '../../_base_/rollback.py',
    '../../_base_/datasets/image_folder.py',
    '../../_base_/schedules/finetune_12e.py',
]

num_classes = len(_base_.custom.classes)
checkpoint = (
    'https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/'
    'swin_base_patch4_window7_224_22kto1k-f967f799.pth'
)
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')),
    head=dict(num_classes=num_classes),
)
data_preprocessor = dict(num_classes=num_classes)

train_dataloader = dict(
    batch_size=32, dataset=dict(_delete_=True, **_base_.custom_train_set, pipeline=_base_.train_pipeline)
)
val_dataloader = dict(dataset=dict(_delete_=True, **_base_.custom_val_set, pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

# AdamW with the stock parameter settings; its rate for training from scratch at batch 1024 would undo the weights
optim_wrapper = dict(
    constructor='OLOROptimWrapperConstructor',
    optimizer=dict(type='AdamWOLOR', lr=1e-4),
    paramwise_cfg=dict(rollback=_base_.rollback),
)
train_cfg = dict(_delete_=True, **_base_.finetune_train_cfg)
param_scheduler = _base_.finetune_param_scheduler
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(checkpoint=_base_.finetune_checkpoint)
