# MobileNetV2, trained on ImageNet-1k -> your own classes.
_base_ = [
    'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    '../../_base_/rollback.py',
    '../../_base_/datasets/image_folder.py',
    '../../_base_/schedules/finetune_12e.py',
]

num_classes = len(_base_.custom.classes)
checkpoint = (
    'https://download.openmmlab.com/mmclassification/v0/mobilenet_v2/'
    'mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth'
)
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')),
    head=dict(num_classes=num_classes, topk=(1,)),
)
data_preprocessor = dict(num_classes=num_classes)

train_dataloader = dict(
    batch_size=32, dataset=dict(_delete_=True, **_base_.custom_train_set, pipeline=_base_.train_pipeline)
)
val_dataloader = dict(dataset=dict(_delete_=True, **_base_.custom_val_set, pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

# AdamW at the rate of the OLOR reference in place of SGD: it suits small data sets without tuning of its own
optim_wrapper = dict(_delete_=True, **_base_.olor_optim_wrapper)
train_cfg = dict(_delete_=True, **_base_.finetune_train_cfg)
param_scheduler = _base_.finetune_param_scheduler
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(checkpoint=_base_.finetune_checkpoint)
