# Layer-wise learning rate decay: layer i of n is trained at lr * layer_decay_rate^(n - i).
finetune_optim_wrapper = dict(
    type='OptimWrapper',
    constructor='olor_mm.OLOROptimWrapperConstructor',
    optimizer=dict(type='olor_mm.AdamWOLOR', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.75, rollback=dict(max_level=0.0), norm_decay_mult=0.0),
)
finetune_hooks = []
