# Decoupled L2-SP: each step takes lr * alpha (w - w_0) off what is pre-trained and lr * beta w off what is new, as in
# AdamW, so that Adam does not rescale it as it does with the penalty in l2sp.py.
finetune_optim_wrapper = dict(
    type='OptimWrapper',
    constructor='olor_mm.OLOROptimWrapperConstructor',
    optimizer=dict(type='olor_mm.AdamWOLOR', lr=1e-4, weight_decay=0.0),
    paramwise_cfg=dict(
        rollback=dict(
            rule='l2sp_decoupled',
            max_level=50.0,  # alpha, in all layers: a step takes 50 * 1e-4 = 0.5 % back
            new_level=0.05,  # beta, as the weight decay of the others
            pretrained='auto',
        )
    ),
)
finetune_hooks = []
