# Linear probing: the backbone is frozen, the running statistics of its norm layers included; the rest is trained.
# With several processes it needs find_unused_parameters = True.
_base_ = 'full.py'
finetune_hooks = [dict(type='olor_mm.FreezeBackboneHook')]
