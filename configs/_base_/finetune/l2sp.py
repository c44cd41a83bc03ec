# L2-SP (arXiv 1802.01483): the loss is given alpha/2 |w - w_0|^2 for what is pre-trained, beta/2 |w|^2 for what is new,
# both summed. They are in the place of weight decay.
finetune_optim_wrapper = dict(
    type='OptimWrapper',
    constructor='olor_mm.OLOROptimWrapperConstructor',
    optimizer=dict(type='olor_mm.AdamWOLOR', lr=1e-4, weight_decay=0.0),
    paramwise_cfg=dict(
        rollback=dict(
            rule='l2sp',
            max_level=1e-2,  # alpha, in all layers
            new_level=1e-2,  # beta
            pretrained='auto',
        )
    ),
)
finetune_hooks = []
