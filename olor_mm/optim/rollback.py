"""OLOR's rollback for any torch optimizer. The rules, with their formulas, are in :mod:`olor_mm.optim.rules`."""

import torch

from .anchors import check_anchor_options, fetched
from .flags import fastest_flags, laid_out, listed, portions
from .rates import are_settled, settle_rates
from .rules import RULES, apply_budget, around_step, check_rollback
from .state import FREE, AnchoredState, eager

PIECE = 1 << 22  # parameters that a rule copies at a time; more only of a larger tensor
HOOKED = torch.optim.Optimizer.profile_hook_step(lambda optimizer: None).__code__


class Rollback(AnchoredState):
    """Mixin that gives a ``torch.optim.Optimizer`` the review step of OLOR.

    It goes before the optimizer in the bases: ``class AdamWOLOR(Rollback, torch.optim.AdamW)``. Arguments of the
    optimizer keep their meaning and place; these are added and can also be set per parameter group.

    Args:
        params: Parameters, parameter groups or named parameters, as for the base optimizer.
        rollback (float): lambda in [0, 1], the share of the way back to the pre-trained value that a step takes at
            the initial learning rate. 0 is the base optimizer, bit for bit; a level that is raised from 0 after the
            first step is not followed. Defaults to 0.
        rollback_coupling (str): 'lr' scales lambda with the group's learning rate over its initial one, within [0, 1]:
            the highest that is known at the first step (its own, or that of its schedule), times the share that a
            schedule gives the group (``lr_scale`` of timm). 'constant' does not. Defaults to 'lr'.
        rollback_drift (float): Instead of ``rollback``, a drift budget: after every step, ||theta - theta_0|| of a
            parameter tensor is at most this share of ||theta_0||, see :mod:`olor_mm.optim.rules.drift`. 0 is none.
            Defaults to 0.
        rollback_rule (str): 'olor', or a baseline of :mod:`olor_mm.optim.rules`: 'l2sp', 'l2sp_decoupled' or 'spd'.
            ``rollback`` is then alpha of L2-SP or lambda of SPD, 0 or more, without coupling. Defaults to 'olor'.
        rollback_new (float): beta of L2-SP: it pulls what has no anchor to 0. Defaults to 0.
        anchor_dtype (torch.dtype or str, optional): Floating dtype of the anchors, e.g. 'bfloat16' for half the
            memory: the parameter then returns to its pre-trained value rounded to it, at most 2^-8 of the value away.
            Defaults to that of the parameter.
        anchor_device (torch.device or str, optional): Device of the anchors. 'cpu' keeps those of GPU parameters in
            pinned host memory and copies them over one by one during the step. Defaults to that of the parameter.
        anchor_file (str or list[str], optional): The file(s) the weights came from. Parameters whose value is in one
            have it for their anchor, memory-mapped; a saved state names file and SHA-256 instead of carrying the
            anchors. '.safetensors', or what ``torch.save`` writes. Defaults to none.

    Without ``foreach`` and ``fused``, the fastest implementation that torch has for the device is taken.

    Attributes:
        select_pretrained (Callable or None): Given the list of parameters that would get an anchor at the coming
            step, returns those that were pre-trained. None takes all of them.
        pretrained_statistics (dict[str, Tensor]): Running statistics of pre-trained norm layers by name, which
            ``state_dict`` carries; the constructor for OpenMMLab fills it.

    Raises:
        ValueError: If an option of any group is out of range.

    Note:
        Every pre-trained parameter of a group with ``rollback > 0`` gets ``state[p]['anchor']`` at the first step after
        it was added: a tensor of its shape. A frozen one has None there, and gets its anchor when it is trained. A
        loaded ``state_dict`` brings its anchors with it, and nothing is captured again.
    """

    def __init__(
        self,
        params,
        *args,
        rollback: float = 0.0,
        rollback_coupling: str = 'lr',
        rollback_drift: float = 0.0,
        rollback_rule: str = 'olor',
        rollback_new: float = 0.0,
        anchor_dtype: torch.dtype | str | None = None,
        anchor_device: torch.device | str | None = None,
        anchor_file: str | list[str] | None = None,
        **kwargs,
    ):
        places = dict(anchor_dtype=anchor_dtype, anchor_device=anchor_device, anchor_file=anchor_file)
        places = check_anchor_options(places, type(self).__name__)
        rules = dict(rollback_coupling=rollback_coupling, rollback_rule=rollback_rule, rollback_new=rollback_new)
        self._rollback_defaults = dict(rollback=rollback, rollback_drift=rollback_drift, **rules, **places)
        self._start_state()
        params = listed(params)
        is_on = bool(rollback or rollback_drift)
        super().__init__(params, *args, **{**kwargs, **fastest_flags(type(self), params, is_on, kwargs)})

    def add_param_group(self, param_group: dict) -> None:
        for key, value in self._rollback_defaults.items():
            self.defaults.setdefault(key, value)
        for mine, other in (('rollback', 'rollback_drift'), ('rollback_drift', 'rollback')):
            if param_group.get(mine):  # what a group says goes before the default of the other
                param_group = {other: 0.0, **param_group}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        where = f'parameter group {len(self.param_groups) - 1}'
        apply_budget(group, where)
        check_rollback(group, where)
        group.update(check_anchor_options(group, where), rollback=float(group['rollback']))
        self._complete(group)

    def undecided(self) -> list[torch.nn.Parameter]:
        """Parameters with ``rollback > 0`` for which the coming step decides whether they get an anchor."""
        groups = [group for group in self.param_groups if group['rollback'] > 0 and not group['rollback_decided']]
        return [p for group in groups for p in group['params'] if 'anchor' not in self.state.get(p, ())]

    def step(self, closure=None):
        if not all(group['rollback_decided'] for group in self.param_groups):
            self._decide()
        if not are_settled(self.param_groups):
            settle_rates(self.param_groups)
        if any(group['rollback'] and group['rollback_decided'] == FREE for group in self.param_groups):
            self._tell_of_level()
        self._capture_anchors()
        remaining = self._two_pass_groups(closure)
        closure = laid_out(remaining, closure)
        pieces = self._pieces(remaining)
        if len(pieces) == 1:
            return self._step_groups(remaining, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for piece in pieces:
            self._step_groups(piece, None)
        return loss

    def _pieces(self, groups: list[dict]) -> list[list[dict]]:
        """Groups that are stepped together: all, but for what a rule copies; of that, some parameters at a time."""
        rest, pieces = [], []
        for group in groups:
            if RULES[group['rollback_rule']].is_drift and group['rollback'] and self._is_of_torch():
                pieces += [[{**group, 'params': params}] for params in portions(group['params'], PIECE)]
            else:
                rest.append(group)
        return [rest, *pieces] if rest or not pieces else pieces

    def _is_of_torch(self) -> bool:
        """Whether the base optimizer is one of torch's, which keep nothing in a group: that of a piece is a copy."""
        base = next(cls for cls in type(self).__mro__ if not issubclass(cls, AnchoredState))
        return base.__module__.startswith('torch.optim')

    def _step_groups(self, groups: list[dict], closure):
        """A step of the base optimizer on these groups alone, and their rules around it."""
        whole, base_step = self.param_groups, super().step.__func__
        if base_step.__code__ is HOOKED:  # torch wraps `step` to run hooks; ours is wrapped already
            base_step = base_step.__wrapped__
        with around_step(self, groups, closure) as closure:
            bare = self._hide_bare_anchors(groups)
            try:
                self.param_groups = groups
                return base_step(self) if closure is None else base_step(self, closure)
            finally:
                self.param_groups = whole
                self._show_anchors(bare)

    def rollback_weight(self, group: dict) -> float | torch.Tensor:
        """w of a parameter group at its present learning rate, in [0, 1]; a tensor if the rate is one.

        0 for rules that take no fixed share of the way back, 'l2sp' and 'spd'.
        """
        rule, level = RULES[group['rollback_rule']], group['rollback']
        weight = rule.weight(group, level)
        risen = rule.is_review and isinstance(weight, float) and weight > level * (1 + 1e-6)
        if risen and not self._told_of_rise:
            self._tell_of_rise(group)
        return weight

    @eager
    def _tell_of_rise(self, group: dict) -> None:
        self._told_of_rise = True
        self.warn(
            f'lr={group["lr"]:.3g} is above the rate that rollback={group["rollback"]:.3g} is meant for, and with '
            "coupling 'lr' the level rises with it, up to 1. Lower the schedule (its eta_min), or take 'constant'"
        )

    @eager
    def _tell_of_level(self) -> None:
        raised = [g for g in self.param_groups if g['rollback'] and g['rollback_decided'] == FREE]
        for group in raised:
            group['rollback_decided'] = True
        self.warn(
            f'rollback={max(group["rollback"] for group in raised):.3g} in {len(raised)} parameter groups is not '
            'followed: it was 0 at the first step, so their pre-trained values were not kept. Let the level start '
            'above 0, e.g. at 1e-9'
        )

    def _two_pass_groups(self, closure) -> list[dict]:
        """What the base optimizer and the rule step in turn; subclasses may take some out and step it themselves."""
        return self.param_groups

    @eager
    def _decide(self) -> None:
        if not any(group['rollback'] > 0 or group['rollback_new'] > 0 for group in self.param_groups):
            name = type(self).__name__
            self.warn(
                f'{name}: rollback is 0 in every parameter group, so this is plain {name.removesuffix("OLOR")}. Give '
                "rollback above 0; in an OpenMMLab config, constructor='OLOROptimWrapperConstructor' and "
                'paramwise_cfg.rollback.max_level above 0'
            )
        params = self.undecided()
        if self.select_pretrained is not None:  # also if there are none: it may refuse the run
            params = self.select_pretrained(params)
        for p in params:
            self.state[p]['anchor'] = None
        for group in self.param_groups:
            group['rollback_decided'] = group['rollback_decided'] or (True if group['rollback'] else FREE)

    @torch.no_grad()
    def pull(self, batches: list[tuple]) -> None:
        """``params`` become ``lerp(params, anchors, w)`` for every (w, params, anchors).

        w is a number, a tensor of one element, or a list of such tensors, one a parameter, which is 0 where a
        GradScaler skipped the step. Elements without an anchor stay.
        """
        found_inf = getattr(self, 'found_inf', None)  # set by a GradScaler that leaves the skipping to a fused kernel
        for weight, params, anchors in fetched(map(self._without_free, batches) if self.partial else batches):
            if isinstance(weight, float) and weight == 0:
                continue
            if isinstance(weight, list):
                weight = [w.to(p.device, p.dtype) for w, p in zip(weight, params)]
            elif found_inf is not None:  # w = 0 where the kernel skipped, decided on the device: reading it would stall
                weight = weight * (1 - found_inf)
            if isinstance(weight, torch.Tensor):
                on = {(p.device, p.dtype): weight.to(p.device, p.dtype) for p in params}
                weight = [on[p.device, p.dtype] for p in params]
            torch._foreach_lerp_(params, anchors, weight)

    def _without_free(self, batch: tuple) -> tuple:
        """A batch for ``pull`` with the present values of parameters where their anchors have none."""
        weight, params, anchors = batch
        anchors = list(anchors)
        for i, p in enumerate(params):
            if p in self.partial:
                anchor = anchors[i].to(p.device, p.dtype)
                anchors[i] = torch.where(anchor.isnan(), p, anchor)
        return weight, params, anchors
