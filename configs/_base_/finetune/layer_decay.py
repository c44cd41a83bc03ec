# Layer-wise learning rate decay: layer i of n is trained at lr * layer_decay_rate^(n - i).
custom_imports = dict(imports=['olor_mm'])

finetune_optim_wrapper = dict(
    type='OptimWrapper',
    constructor='OLOROptimWrapperConstructor',
    optimizer=dict(type='AdamWOLOR', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.75, rollback=dict(max_level=0.0), norm_decay_mult=0.0),
)
finetune_hooks = []
