"""Results of the inspection of a config."""

from dataclasses import dataclass, field

from ..optim.penalty import half_life_of

NEW, CLAIMED = 'new', 'claimed'


@dataclass
class Parameter:
    """One parameter tensor. Three values are those of the first step, the step of the highest rate, and the last.

    Attributes:
        name (str): As in ``model.named_parameters()``.
        layer, layers (int): i and n.
        number (int): Number of scalars.
        source (str): Its checkpoint, 'new', or 'claimed' if only ``pretrained`` of the config says it has one.
        frozen (bool): Whether it is frozen in the training mode of the model.
        norm (str): 'updated', 'frozen' or 'none' for the running statistics of its norm layer; '' outside of any.
        lr (tuple[float, ...]): Three learning rates; () if it is in no group of the optimizer.
        weight_decay, level (float or None): Of its group; ``level`` is lambda.
        w (tuple[float, ...]): Three shares of the way back per step; zeros without rollback.
        anchor_bytes (int): Memory of its anchor.
    """

    name: str
    layer: int
    layers: int
    number: int
    source: str
    frozen: bool
    norm: str
    lr: tuple[float, ...] = ()
    weight_decay: float | None = None
    level: float | None = None
    w: tuple[float, ...] = (0.0, 0.0, 0.0)
    anchor_bytes: int = 0

    @property
    def half_life(self) -> float | None:
        """Steps that halve a deviation without gradients, at the highest rate; None without rollback."""
        return half_life_of(self.w[1]) if self.w[1] else None


@dataclass
class RollbackReport:
    """What the tables show.

    Attributes:
        parameters (list[Parameter]): In the order of the model.
        sources (dict[str, str]): Checkpoint to 'loaded', or why it is only declared.
        top_iteration, iterations (int): Iteration of the highest rate, from 0; and length of the run.
        steps (float): Steps of the optimizer in the run.
        steps_per_epoch (float or None): Steps of the optimizer in an epoch; None without a data set.
        max_level (float or None): The level of the layer nearest the input; None for rules other than OLOR.
        data (str): One line about the data set.
        norms (str): One line about the statistics of pre-trained norm layers.
        lines_to_add (str): The lines that give a config rollback; '' if it has it.
        warnings (list[str]): What looks wrong.
    """

    parameters: list[Parameter] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    top_iteration: int = 0
    iterations: int = 0
    steps: float = 0.0
    steps_per_epoch: float | None = None
    max_level: float | None = None
    data: str = ''
    norms: str = ''
    lines_to_add: str = ''
    warnings: list[str] = field(default_factory=list)
