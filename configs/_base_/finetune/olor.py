# OLOR, layer-wise rollback; configs/_base_/rollback.py has every setting of it.
finetune_optim_wrapper = dict(
    type='OptimWrapper',
    constructor='olor_mm.OLOROptimWrapperConstructor',
    optimizer=dict(type='olor_mm.AdamWOLOR', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(rollback=dict(max_level=1e-2), norm_decay_mult=0.0),
)
finetune_hooks = []
