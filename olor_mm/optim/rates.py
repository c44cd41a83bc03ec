"""lr_0, the learning rate that the level of a parameter group is meant for: ``rollback_initial_lr`` of the group."""

from .state import eager

CLOSE = 1 + 1e-6


def are_settled(groups: list[dict]) -> bool:
    """Whether :func:`settle_rates` would change nothing."""
    return all(group['rollback_initial_lr'] == group['rollback_full_lr'] for group in groups)


@eager
def settle_rates(groups: list[dict]) -> None:
    """Settle lr_0 of new groups at the first step that has a rate above 0, and later raise it where it was too low.

    ``rollback_full_lr`` is the highest rate that is known then: that of the group when it was added, ``initial_lr`` of
    its schedule, the present one. It is lr_0, unless a schedule gives the group a share of it all the time, as those of
    timm do by ``lr_scale``, and ``LambdaLR`` by a function for each group: then lr_0 is this share. If the rate exceeds
    the share later, lr_0 rises with it up to the full rate, so w stays at the level or below.
    """
    new = [group for group in groups if group['rollback_full_lr'] is None]
    if any(group['lr'] > 0 for group in new):
        bases = [max(group['rollback_initial_lr'], float(group.get('initial_lr', 0))) for group in new]
        for group, base, share in zip(new, bases, _shares(new, bases)):
            group['rollback_full_lr'] = max(base, float(group['lr']))
            group['rollback_initial_lr'] = base * share
    for group in groups:
        initial, full = group['rollback_initial_lr'], group['rollback_full_lr']
        if full is not None:
            group['rollback_initial_lr'] = max(initial, min(float(group['lr']), full))


def _shares(groups: list[dict], bases: list[float]) -> list[float]:
    """The share of its full rate that a schedule gives each group."""
    factors = [float(group['lr']) / base if base else 0.0 for group, base in zip(groups, bases)]
    scales = [float(group.get('lr_scale', 1)) for group in groups]
    known = [(factor, scale) for factor, scale in zip(factors, scales) if factor]
    if not known:
        return [1.0] * len(groups)
    top = max(factors)
    if _are_one([factor for factor, _ in known]) and (len(set(scales)) > 1 or top > scales[0] * CLOSE):
        return [1.0] * len(groups)  # nobody scales; mmdet notes as `lr_scale` what is in the rate already
    if _are_one([factor / scale for factor, scale in known]):
        return scales
    # where one group is at its full rate, it is no warm-up that lowers the others
    is_warm = 1 / CLOSE < top < CLOSE
    return [factor if factor and is_warm else 1.0 for factor in factors]


def _are_one(values: list[float]) -> bool:
    return max(values) <= min(values) * CLOSE
