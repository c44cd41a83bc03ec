# The same run with stock AdamW and MMEngine's default constructor: what differs is the rollback alone.
_base_ = './mask-rcnn_nuclei_olor.py'

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=dict(backbone=dict(lr_mult=0.2))),
    clip_grad=dict(max_norm=10.0),
)
