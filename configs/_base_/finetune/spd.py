# Selective Projection Decay (arXiv 2411.01713), in the place of weight decay: a tensor is taken back where its gradient
# leads back to the pre-trained weights and its step does not.
finetune_optim_wrapper = dict(
    type='OptimWrapper',
    constructor='olor_mm.OLOROptimWrapperConstructor',
    optimizer=dict(type='olor_mm.AdamWOLOR', lr=1e-4, weight_decay=0.0),
    paramwise_cfg=dict(
        rollback=dict(
            rule='spd',
            max_level=1.0,  # lambda; 1 goes back as far from the pre-trained weights as before the step
            pretrained='auto',
        )
    ),
)
finetune_hooks = []
