"""Results of the inspection of a config."""

from dataclasses import dataclass, field

from ..optim.penalty import half_life_of

NEW, CLAIMED = 'new', 'claimed'


@dataclass
class Parameter:
    """One parameter tensor. Three values are those of the first step, the step of the highest rate, and the last."""

    name: str
    layer: int  # i
    layers: int  # n
    number: int  # of scalars
    source: str  # its checkpoint, NEW, or CLAIMED if only `pretrained` of the config says it has one
    frozen: bool  # in the training mode of the model
    norm: str  # running statistics of its norm layer: 'updated', 'frozen' or 'none'; '' outside of any
    lr: tuple[float, ...] = ()  # three learning rates; () if it is in no group of the optimizer
    weight_decay: float | None = None
    level: float | None = None  # lambda; None under a drift budget
    budget: float | None = None  # share of its norm that it may move; None without a drift budget
    bound: float | None = None  # of ||theta - theta_0|| under a budget; None where its weights are not here
    size: float | None = None  # ||theta_0||, beside the bound
    is_held: bool = False  # pre-trained and trained, with a level or a budget
    w: tuple[float, ...] = (0.0, 0.0, 0.0)  # three shares of the way back per step; zeros without rollback
    anchor_bytes: int = 0

    @property
    def half_life(self) -> float | None:
        """Steps that halve a deviation without gradients, at the highest rate; None without rollback."""
        return half_life_of(self.w[1]) if self.w[1] else None


@dataclass
class RollbackReport:
    """What the tables show."""

    parameters: list[Parameter] = field(default_factory=list)  # in the order of the model
    sources: dict[str, str] = field(default_factory=dict)  # checkpoint to 'loaded', or why it is only declared
    top_iteration: int = 0  # of the highest rate
    iterations: int = 0
    steps: float = 0.0  # of the optimizer in the run
    steps_per_epoch: float | None = None  # None without a data set
    max_level: float | None = None  # None for rules other than OLOR
    data: str = ''
    norms: str = ''
    lines_to_add: str = ''  # that give a config rollback; '' if it has it
    warnings: list[str] = field(default_factory=list)
