"""OLOR's rollback for any torch optimizer: the anchors, the rule, and their place in the optimizer's state.

The rule (Huang et al., "One Step Learning, One Step Review", AAAI 2024, arXiv 2401.10962)::

    theta_hat_t = BaseOptimizer(theta_{t-1}, g_t)                  one step of learning
    theta_t     = lerp(theta_hat_t, theta_0, w_t)                  one step of review
    w_t         = lambda * lr_t / lr_0   (rollback_coupling='lr')
                = lambda                 (rollback_coupling='constant')

theta_0, the anchor, is the value a parameter has when the first step begins.
"""

import warnings

import torch

from .penalty import check_rollback


class Rollback:
    """Mixin that gives a ``torch.optim.Optimizer`` the review step of OLOR.

    It goes before the optimizer in the bases: ``class AdamWOLOR(Rollback, torch.optim.AdamW)``. Arguments of the
    optimizer keep their meaning and place; these two are added and can also be set per parameter group.

    Args:
        params: Parameters, parameter groups or named parameters, as for the base optimizer.
        rollback (float): lambda in [0, 1], the share of the way back to the pre-trained value that a step takes at
            the initial learning rate. 0 is the base optimizer, bit for bit. Defaults to 0.
        rollback_coupling (str): 'lr' scales lambda with the group's learning rate over its initial one (the
            ``initial_lr`` of a scheduler, else the value the group was added with), clamped to [0, 1]; 'constant'
            does not. Defaults to 'lr'.

    Attributes:
        select_pretrained (Callable or None): Given the list of parameters that would get an anchor at the coming
            step, returns those of them that were pre-trained. None takes all of them.

    Raises:
        ValueError: If ``rollback`` or ``rollback_coupling`` of any group is out of range.

    Note:
        Every pre-trained parameter of a group with ``rollback > 0`` gets ``state[p]['anchor']``, a copy of its own
        shape, dtype and device, at the first step after it was added. A loaded ``state_dict`` brings its anchors
        with it, and nothing is captured again.
    """

    def __init__(self, params, *args, rollback: float = 0.0, rollback_coupling: str = 'lr', **kwargs):
        self._rollback_defaults = dict(rollback=rollback, rollback_coupling=rollback_coupling)
        self._bare = []  # parameters whose state is an anchor and nothing of the base optimizer yet
        self.select_pretrained = None
        super().__init__(params, *args, **kwargs)

    def add_param_group(self, param_group: dict) -> None:
        for key, value in self._rollback_defaults.items():
            self.defaults.setdefault(key, value)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        where = f'parameter group {len(self.param_groups) - 1}'
        check_rollback(group['rollback'], group['rollback_coupling'], where)
        group['rollback'] = float(group['rollback'])
        # not `initial_lr`: cyclic schedules set it to their lowest rate, and hand-written warm-ups to none
        group.setdefault('rollback_initial_lr', float(group['lr']))
        group.setdefault('rollback_decided', False)

    def undecided(self) -> list[torch.nn.Parameter]:
        """Parameters with ``rollback > 0`` for which the coming step decides whether they get an anchor."""
        groups = [group for group in self.param_groups if group['rollback'] > 0 and not group['rollback_decided']]
        return [p for group in groups for p in group['params'] if 'anchor' not in self.state.get(p, ())]

    def step(self, closure=None):
        self._capture()
        # base optimizers initialise a state that is empty and expect theirs in any other: hide bare anchors
        anchors = {p: self.state.pop(p)['anchor'] for p in self._bare}
        base_step = super().step.__func__
        if getattr(base_step, 'hooked', False):  # torch wraps `step` to run hooks; ours is wrapped already
            base_step = base_step.__wrapped__
        try:
            loss = base_step(self) if closure is None else base_step(self, closure)
        finally:
            for p, anchor in anchors.items():
                self.state[p]['anchor'] = anchor
        self._bare = [p for p in anchors if len(self.state[p]) == 1]
        self._review()
        return loss

    def rollback_weight(self, group: dict) -> float:
        """w of a parameter group at its present learning rate, in [0, 1]."""
        if group['rollback_coupling'] == 'constant' or group['rollback'] == 0:
            return group['rollback']
        lr = float(group['lr'])
        initial_lr = group.get('max_lr', group['rollback_initial_lr'])  # one-cycle schedules set their own top rate
        if lr and not initial_lr:
            raise ValueError(
                f"rollback_coupling='lr' relates lr={lr} to the rate the group was added with, and that is 0: add it "
                'with the rate that its level is meant for, and let a schedule warm it up'
            )
        return min(max(group['rollback'] * lr / initial_lr, 0.0), 1.0) if lr else 0.0

    @torch.no_grad()
    def _capture(self) -> None:
        if all(group['rollback_decided'] for group in self.param_groups):
            return
        if not any(group['rollback'] > 0 for group in self.param_groups):
            name = type(self).__name__
            warnings.warn(
                f'{name}: rollback is 0 in every parameter group, so this is plain {name.removesuffix("OLOR")}. Give '
                "rollback above 0; in an OpenMMLab config, constructor='OLOROptimWrapperConstructor' and "
                'paramwise_cfg.rollback.max_level above 0.',
                stacklevel=2,
            )
        params = self.undecided()
        if params and self.select_pretrained is not None:
            params = self.select_pretrained(params)
        for p in params:
            if not self.state.get(p):
                self._bare.append(p)
            self.state[p]['anchor'] = p.detach().clone(memory_format=torch.preserve_format)
        for group in self.param_groups:
            group['rollback_decided'] = True

    @torch.no_grad()
    def _review(self) -> None:
        found_inf = getattr(self, 'found_inf', None)  # set by a GradScaler that leaves the skipping to a fused kernel
        for group in self.param_groups:
            weight = self.rollback_weight(group)
            if weight == 0:
                continue
            params = [p for p in group['params'] if p.grad is not None and 'anchor' in self.state.get(p, ())]
            if not params:
                continue
            anchors = [self.state[p]['anchor'] for p in params]
            if found_inf is None:
                torch._foreach_lerp_(params, anchors, weight)
            else:  # w = 0 where the kernel skipped, decided on the device: reading it would stall the stream
                weights = [weight * (1 - found_inf.to(p.device, p.dtype)) for p in params]
                torch._foreach_lerp_(params, anchors, weights)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a ``state_dict`` and go on with its anchors.

        Raises:
            ValueError: If rollback is on here and the loaded state is of a run without it, or if its parameter groups
                are others than here.
        """
        levels = ('rollback', 'rollback_coupling')
        ours = [[group[key] for key in levels] for group in self.param_groups]
        states = state_dict['state'].values()
        anchored = any('anchor' in state for state in states)
        # a state saved before the first step is empty and still ours; plain SGD keeps none at any time
        unstarted = not states and any('rollback' in group for group in state_dict['param_groups'])
        if any(rollback for rollback, _ in ours) and not anchored and not unstarted:
            raise ValueError(
                f'this optimizer state has no anchors, so it is not of a run with rollback, and {type(self).__name__} '
                'cannot resume from it: the weights at hand are no longer the pre-trained ones. Either start anew with '
                'the pre-trained weights (load_from, without resume), or go on without rollback, with the optimizer '
                'and constructor of that run.'
            )
        sizes = [
            [len(group['params']) for group in groups] for groups in (state_dict['param_groups'], self.param_groups)
        ]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f'the optimizer state has {len(sizes[0])} parameter groups (sizes {sizes[0]}), and here are '
                f'{len(sizes[1])} ({sizes[1]}). Groups follow from the model and from paramwise_cfg: resume with the '
                'same max_level, min_level, power, layer_index and other options as that run.'
            )
        present = {p: state['anchor'] for p, state in self.state.items() if 'anchor' in state}
        super().load_state_dict(state_dict)
        if not states:  # a reset: what was pre-trained stays what it was
            self._bare = list(present)
            self.state.update({p: dict(anchor=anchor) for p, anchor in present.items()})
        if ours != [[group[key] for key in levels] for group in self.param_groups]:
            warnings.warn(
                'the resumed optimizer state has other rollback levels or couplings than the configuration; as with '
                'lr and weight_decay, those of the state are used.',
                stacklevel=2,
            )

    def __getstate__(self) -> dict:
        own = ('_rollback_defaults', 'select_pretrained')
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in own}}

    def __setstate__(self, state: dict) -> None:
        bare = {p: kept for p, kept in state['state'].items() if kept.keys() == {'anchor'}}
        for p in bare:
            del state['state'][p]
        super().__setstate__(state)
        self.state.update(bare)
        self._bare = list(bare)
        for group in self.param_groups:  # of a stock optimizer
            for key, value in self._rollback_defaults.items():
                group.setdefault(key, value)
            group.setdefault('rollback_initial_lr', float(group['lr']))
            group.setdefault('rollback_decided', False)
