# Plain ViT-B with window attention, as in ViTDet, from the image encoder of SAM -> Faster R-CNN on your own classes.
#
# mmdet keeps ViTDet itself in its projects/ folder, which is not installed with it. This is made of installed parts:
# the outputs of the four blocks with global attention, rescaled to four sizes, and FPN; not ViTDet's pyramid of the
# last map.
_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    '../../_base_/rollback.py',
    '../../_base_/datasets/coco_format.py',
    '../../_base_/schedules/finetune_12e.py',
]

num_classes = len(_base_.custom.classes)
custom_imports = dict(imports=['olor_mm', 'mmpretrain.models', 'mmseg.models'])
checkpoint = (
    'https://download.openmmlab.com/mmclassification/v1/vit_sam/'
    'vit-base-p16_sam-pre_3rdparty_sa1b-1024px_20230411-2320f9cc.pth'
)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ViTSAM',
        arch='base',
        img_size=1024,
        out_channels=0,
        out_indices=[2, 5, 8, 11],
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.'),
    ),
    neck=[
        dict(type='mmseg.Feature2Pyramid', embed_dim=768, norm_cfg=dict(type='GN', num_groups=32)),
        dict(type='FPN', in_channels=[768] * 4, out_channels=256, num_outs=5),
    ],
    roi_head=dict(bbox_head=dict(num_classes=num_classes)),
)

train_dataloader = dict(batch_size=2, dataset=_base_.custom_train_set)
val_dataloader = dict(dataset=_base_.custom_val_set)
test_dataloader = val_dataloader
val_evaluator = _base_.custom_evaluator
test_evaluator = val_evaluator

# AdamW at the rate of the OLOR reference; stock Faster R-CNN has SGD, with which ViT is not trained
optim_wrapper = dict(_delete_=True, **_base_.olor_optim_wrapper)
train_cfg = dict(_delete_=True, **_base_.finetune_train_cfg)
param_scheduler = _base_.finetune_param_scheduler
auto_scale_lr = dict(base_batch_size=2)
default_hooks = dict(checkpoint=_base_.finetune_checkpoint)
