"""Linear probing: the backbone keeps its pre-trained weights."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from torch.nn.parallel import DistributedDataParallel

from ...layers import backbones, unwrapped


class FreezeBackboneHook(Hook):
    """Linear probing for any model: trains everything except the backbone.

    No parameter of the backbone gets a gradient, and its modules are in ``eval`` mode in every iteration: the running
    statistics of norm layers stay as they are, and dropout and drop path are off.

    Raises:
        ValueError: If the model has no backbone, or ``DistributedDataParallel`` waits for all parameters' gradients.

    Example:
        >>> custom_hooks = [dict(type='FreezeBackboneHook')]
    """

    def before_run(self, runner) -> None:
        model = unwrapped(runner.model)
        parts = dict(backbones(model))
        if '' in parts:
            names = ', '.join(name for name, _ in model.named_children())
            raise ValueError(f'FreezeBackboneHook: {type(model).__name__} has no backbone to freeze, only {names}')
        if isinstance(runner.model, DistributedDataParallel) and not runner.model.find_unused_parameters:
            raise ValueError('find_unused_parameters=False: set it to True in the config to use FreezeBackboneHook')
        self.backbones = list(parts.values())
        params = [p for backbone in self.backbones for p in backbone.parameters()]
        for p in params:
            p.requires_grad_(False)
        where = ', '.join(prefix.rstrip('.') for prefix in parts)
        print_log(f'FreezeBackboneHook: froze {len(params)} parameter tensors of {where}', logger='current')

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        for backbone in self.backbones:  # loops call model.train(), after other hooks
            if backbone.training:
                backbone.eval()
