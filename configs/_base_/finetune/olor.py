# Layer-wise rollback, by the name that the other ways of fine-tuning have here.
_base_ = '../rollback.py'

finetune_optim_wrapper = _base_.olor_optim_wrapper
finetune_hooks = []
