"""What a rule is: the way in which weights return to their pre-trained values around a step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor
from torch.nn import Parameter

from ..penalty import FLOAT32_MAX

Batch = tuple[float, list[Parameter], list[Tensor]]  # level, parameters, what they are pulled to


class Rule:
    """A rule, as ``rollback_rule`` of a parameter group names it. Its formula stands in the docstring of its module.

    A rule has no state: what differs from group to group is in the group, what lasts is in the optimizer.

    Attributes:
        name (str): Its name in configs and parameter groups.
        symbol (str): What papers call its level.
        highest (float): The highest level that has a meaning.
        defaults (Mapping): Defaults of ``paramwise_cfg.rollback`` that differ from those of OLOR.
        pulls_new (bool): Whether ``rollback_new`` pulls parameters without an anchor to 0.
        has_share (bool): Whether a step takes a fixed share w of the way back, which :meth:`weight` then gives.
        is_drift (bool): Whether it is the drift budget. It compares a parameter with a copy from before the step, which
            is made of some parameters at a time; a kernel needs none.
        is_review (bool): Whether all it does is ``lerp(theta, theta_0, w)`` after the step, which a kernel may do in
            the pass of the step.
    """

    name: str
    symbol = 'lambda'
    highest = FLOAT32_MAX
    defaults: ClassVar[Mapping[str, float]] = {}
    pulls_new = False
    has_share = False
    is_drift = False
    is_review = False

    def weight(self, group: dict, level: float) -> float | Tensor:
        """w, the share of the way back that a step takes.

        Args:
            group (dict): A parameter group, with its learning rate.
            level (float): Its level, or that of what is new.

        Returns:
            float or Tensor: In [0, 1]; a tensor of one element where the learning rate is one.
        """
        return 0.0

    @contextmanager
    def around(self, optimizer, group: dict, batches: list[Batch]) -> Iterator[None]:
        """What the rule does before and after the base optimizer's step, which is made in the body.

        Args:
            optimizer (Rollback): Its gradients are there.
            group (dict): A parameter group.
            batches (list[Batch]): Level, parameters that have a gradient, and what they are pulled to: tensors of the
                same shapes.

        Raises:
            NotImplementedError: If the rule does not say it.
        """
        raise NotImplementedError
        yield
