# Full fine-tuning: all weights are trained, nothing holds them.
finetune_optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
finetune_hooks = []
