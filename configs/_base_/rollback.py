# Layer-wise rollback for any stock config. Take it as a second base and put this into your config:
#     optim_wrapper = dict(_delete_=True, **_base_.olor_optim_wrapper)
# (stock configs define `optim_wrapper` themselves, and two bases must not define the same key).
# How to choose a level or a budget: docs/en/choosing_how_strong.md.
custom_imports = dict(imports=['olor_mm'])

rollback = dict(
    max_level=1e-2,  # share of the way back to the pre-trained weights per step, in the layer nearest the input
    min_level=None,  # the same for neck and head: 0.3 of max_level if a checkpoint filled any of them, else 0
    power=1.0,  # how it falls in between: 1 linear, more keeps it to the shallowest layers, 0 max_level everywhere
    pretrained='auto',  # what a checkpoint was loaded into; or 'all', or a list of prefixes of parameter names
    layer_index='block',  # layers are residual / transformer / ... blocks
    coupling='lr',
)  # follows the learning rate schedule; 'constant' does not

olor_optim_wrapper = dict(
    type='OptimWrapper',
    constructor='OLOROptimWrapperConstructor',
    optimizer=dict(type='AdamWOLOR', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(rollback=rollback, norm_decay_mult=0.0),
)
