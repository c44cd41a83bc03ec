"""The study of natural images: does it help near the old task and under a shift, what is kept, what to set?

    python benchmarks/evidence/natural.py --pacs DIR --caltech DIR --imagenet DIR    # runs what is missing
    python benchmarks/evidence/natural.py --tables                                   # prints the pages from natural.csv
    python benchmarks/evidence/natural.py --pacs DIR ... --again 3                   # holds 3 random rows to the spread

Without a folder, the questions that need it are left out, and this is said. :mod:`folders` says what is in them. All
images have 96 pixels (those of ``long`` 32), all batches 32. Seconds of a run are for one core without other work, from
0.40 for a step of MobileNetV2 (32 pixels: 0.09, Lite0: 0.65) and 0.0036 for a test image. The whole plan is 11 hours.

| part    | new task                                         | old task     | runs | a run, s | first seed, h | all, h |
|---------|--------------------------------------------------|--------------|-----:|---------:|--------------:|-------:|
| `near`  | Caltech-101 and photos of PACS, 5 and 15 a class | 1,000 photos |  438 | 26 to 77 |           2.6 |    4.5 |
| `shift` | three domains of PACS; the fourth is held out    | 1,000 photos |  310 | 36 to 72 |           1.0 |    3.4 |
| `chain` | Caltech-101 after PACS                           | PACS         |   72 |       52 |           0.3 |    1.0 |
| `long`  | Fashion-MNIST, 100 to 17,600 steps               | 124 crops    |   27 | to 1,590 |           1.5 |    1.7 |

Every method has six settings, at the rate that is best for plain fine-tuning on validation. The first seed runs all of
them. What is best of each method on validation, and what keeps most for a point of it, are run with more: the first
with all of :data:`SEEDS`, the other with :data:`FEW`. ``shift`` chooses with one domain held out, at 20 images a class
and domain, and takes the choice to all four, and :data:`MAIN` of it to 100 images. ``chain`` runs all with :data:`FEW`.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from folders import DOMAINS
from rows import HERE, Study, arguments, console, keyed, quiet, read
from study import NATURAL as ROWS
from study import RESULTS

FIELDS = [
    *('key', 'part', 'network', 'data', 'size', 'method', 'options', 'seed', 'val', 'test', 'held_out'),
    *('before', 'old_restored', 'old', 'agreement_restored', 'agreement', 'kl_restored'),
    *('drift_shallow', 'drift_middle', 'drift_deep', 'drift_mean'),
    *('iters', 'batch', 'side', 'seconds', 'commit', 'machine', 'date'),
]
MOBILENET, LITE0 = 'mobilenet-v2', 'efficientnet-lite0'
SEEDS, FEW = (0, 1, 2, 3, 4), (0, 1, 2)
RATES = (1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
WISE_RATES, ALPHAS = (5e-4, 2e-3), (0.75, 0.5, 0.25)
PLAIN, WISE_FT, DECOUPLED = 'plain fine-tuning', 'WiSE-FT', 'decoupled L2-SP'
BUDGET, LEVEL, PAPER = 'OLOR by budget', 'OLOR by level', 'OLOR by falling level'  # the last as in the paper
RECOMMENDED = dict(max_drift=[0.04, 0.16])
STRENGTHS: dict[str, tuple[str, list[dict]]] = {  # six for every method, from weak to strong
    LEVEL: ('olor', [dict(max_level=level, power=0.0) for level in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)]),
    BUDGET: (
        'olor',
        [dict(max_drift=of) for of in ([0.04, 0.16], 0.1, [0.02, 0.08], 0.05, [0.008, 0.032], 0.02)],
    ),
    DECOUPLED: ('l2sp_decoupled', [dict(max_level=alpha) for alpha in (2.0, 5.0, 15.0, 50.0, 150.0, 500.0)]),
    PAPER: (
        'olor',
        [
            *(dict(max_level=level) for level in (0.01, 0.03, 0.1)),
            *(dict(max_level=level, min_level=round(0.3 * level, 4)) for level in (0.01, 0.03, 0.1)),
        ],
    ),
    'SPD': ('spd', [dict(max_level=strength) for strength in (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)]),
    'L2-SP': ('l2sp', [dict(max_level=alpha) for alpha in (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 1.0)]),
    'layer-wise lr decay': ('layer_decay', [dict(decay=decay) for decay in (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)]),
}
PROBE = 'linear probing'
PROBE_RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
FAMILIES = (PLAIN, WISE_FT, PROBE, *STRENGTHS)
MAIN = (PLAIN, LEVEL, BUDGET)


@dataclass(frozen=True)
class Cell:
    """A new task, and how long it is trained."""

    data: str
    size: int
    iters: int
    network: str = MOBILENET
    side: int = 96


CALTECH, CALTECH_5 = Cell('caltech', 15, 100), Cell('caltech', 5, 60)
PHOTO, PHOTO_5 = Cell('pacs photo', 15, 60), Cell('pacs photo', 5, 40)
NEAR = (CALTECH, PHOTO_5, PHOTO, CALTECH_5)
SECOND = Cell('caltech', 15, 100, LITE0)
SHIFT = {size: tuple(Cell(f'pacs but {d}', size, iters) for d in DOMAINS) for size, iters in ((20, 60), (100, 150))}
TUNED_SHIFT = SHIFT[20][0]  # where the settings are chosen
CHAIN = CALTECH
FIRST = dict(data='pacs', size=20, iters=100, method='full', options=dict(lr=1e-3))
CHAIN_FAMILIES = (PLAIN, BUDGET, LEVEL, DECOUPLED)
LONG_DATA, LONG_SIZE, LENGTHS, LONG_RATES = (
    'fashion',
    200,
    (100, 1000, 17600),
    (1e-4, 1e-3),
)  # steps; 1e-4 as in the paper
LONG_LEVEL = 0.01
NEEDS = dict(near=('pacs', 'caltech', 'imagenet'), shift=('pacs', 'imagenet'), chain=('pacs', 'caltech'), long=())


def trial(part: str, cell: Cell, method: str, options: dict, seed: int, **more) -> dict:
    made = dict(data=cell.data, size=cell.size, iters=cell.iters, network=cell.network, side=cell.side, batch=32)
    made.update(method=method, options=options, seed=seed, **more)
    return dict(keyed(made), part=part)


def settings(family: str, rate: float | None) -> list[tuple[str, dict]] | None:
    """Methods and options of a family; None as long as the rate that they are at is unknown."""
    if family == PLAIN:
        return [('full', dict(lr=lr)) for lr in RATES]
    if family == PROBE:
        return [('linear_probe', dict(lr=lr)) for lr in PROBE_RATES]
    if family == WISE_FT:
        return [('wise_ft', dict(lr=lr, alpha=alpha)) for lr in WISE_RATES for alpha in ALPHAS]
    method, strengths = STRENGTHS[family]
    return None if rate is None else [(method, dict(of, lr=rate)) for of in strengths]


class Found:
    """What the rows of the first seed say so far."""

    def __init__(self, rows: list[dict]):
        self.rows = {row['key']: row for row in rows}

    def measured(self, part: str, cell: Cell, settings: list[tuple[str, dict]], key: str, **more) -> list[float] | None:
        """A measure of settings with the first seed; None if a run is missing."""
        found = [self.rows.get(trial(part, cell, *setting, SEEDS[0], **more)['key']) for setting in settings]
        return None if None in found else [float(row[key]) for row in found]

    def rate(self, part: str, cell: Cell, **more) -> float | None:
        """The rate at which plain fine-tuning is best on validation; of equals the first."""
        values = self.measured(part, cell, settings(PLAIN, None), 'val', **more)
        return None if values is None else RATES[int(np.argmax(values))]

    def best(self, part: str, cell: Cell, family: str) -> tuple[str, dict] | None:
        """The setting that is best on validation, of equals the first; None as long as a run is missing."""
        tried = settings(family, self.rate(part, cell))
        values = tried and self.measured(part, cell, tried, 'val')
        return tried[int(np.argmax(values))] if values else None

    def keeper(self, part: str, cell: Cell, family: str) -> list[tuple[str, dict] | None]:
        """The setting that keeps most of the old task, of those at most a point below plain fine-tuning's best, if any.

        [None] as long as a run is missing.
        """
        tried, plain = settings(family, self.rate(part, cell)), self.measured(part, cell, settings(PLAIN, None), 'val')
        values = tried and self.measured(part, cell, tried, 'val')
        if not values:
            return [None]
        kept = self.measured(part, cell, tried, 'old_restored')
        good = [(old, setting) for value, old, setting in zip(values, kept, tried) if value >= max(plain) - 1]
        return [max(good, key=lambda pair: pair[0])[1]] if good else []


Trials = Iterator[dict | None]


def grid(found: Found, part: str, cell: Cell, seed: int, families=FAMILIES, **more) -> Trials:
    """All settings of all methods."""
    rate = found.rate(part, cell, **more)
    for family in families:
        for setting in settings(family, rate) or [None] * 6:
            yield setting and trial(part, cell, *setting, seed, **more)


def finals(found: Found, part: str, chosen_in: Cell, cells: tuple[Cell, ...], seed: int, families=FAMILIES) -> Trials:
    """The best setting of every method, chosen in a cell with the first seed, with another seed or in other cells.

    And the recommended setting, whether it is best or not.
    """
    for family in families:
        settings = [found.best(part, chosen_in, family)]
        if family == BUDGET and settings[0]:
            settings.append(('olor', dict(RECOMMENDED, lr=settings[0][1]['lr'])))
        for setting in settings:
            for cell in cells:
                yield setting and trial(part, cell, *setting, seed)


def keepers(found: Found, part: str, cell: Cell, seed: int) -> Trials:
    """The setting of every method that keeps most for a point of validation, with another seed."""
    for family in FAMILIES:
        for setting in found.keeper(part, cell, family):
            yield setting and trial(part, cell, *setting, seed)


def long(seed: int, rate: float, lengths: tuple[int, ...]) -> Trials:
    """Runs of the length that the reference has in pull: 17,600 steps at level 0.01 pull by 88 in sum."""
    for iters in lengths:
        cell = Cell(LONG_DATA, LONG_SIZE, iters, side=32)
        for method, options in (('full', {}), ('olor', dict(max_level=LONG_LEVEL)), ('olor', RECOMMENDED)):
            yield trial('long', cell, method, dict(options, lr=rate), seed)


def plan(rows: list[dict], parts=tuple(NEEDS)) -> Trials:
    """All trials, those first that decide most; None stands for one that depends on rows still to come."""
    found = Found(rows)
    first, *others = SEEDS
    slow, fast = LONG_RATES

    def tuned(*cells: Cell, families=FAMILIES) -> Trials:
        for cell in cells:
            yield from grid(found, 'near', cell, first, families)

    def near_finals(seed: int) -> Trials:
        for cell in NEAR:
            yield from finals(found, 'near', cell, (cell,), seed)
            if seed in FEW:
                yield from keepers(found, 'near', cell, seed)
        yield from finals(found, 'near', SECOND, (SECOND,), seed, MAIN)

    def chain(seed: int) -> Trials:
        yield from grid(found, 'chain', CHAIN, seed, CHAIN_FAMILIES, first=FIRST)

    def shift(size: int, seed: int, families=FAMILIES) -> Trials:
        yield from finals(found, 'shift', TUNED_SHIFT, SHIFT[size], seed, families)

    made = (
        *(('near', tuned(NEAR[0])), ('chain', chain(first)), ('shift', grid(found, 'shift', TUNED_SHIFT, first))),
        *(('shift', shift(20, first)), ('near', tuned(*NEAR[1:])), ('long', long(first, slow, LENGTHS))),
        *((part, of) for seed in others[:2] for part, of in (('near', near_finals(seed)), ('shift', shift(20, seed)))),
        *(('near', tuned(SECOND, families=MAIN)), *(('shift', shift(100, seed, MAIN)) for seed in FEW)),
        *(('chain', chain(seed)) for seed in FEW[1:]),
        *((part, of) for seed in others[2:] for part, of in (('near', near_finals(seed)), ('shift', shift(20, seed)))),
        *(('shift', shift(100, seed, MAIN)) for seed in SEEDS[3:]),
        *(('long', long(seed, slow, LENGTHS[:-1])) for seed in FEW[1:]),
        ('long', long(first, fast, LENGTHS[:-1])),
    )
    for part, trials in made:
        if part in parts:
            yield from trials


def measure(one: dict, folders: dict[str, str]) -> list[dict]:
    """Run a trial; plain runs at some rates bring the interpolations of WiSE-FT with them, and those the plain run."""
    import cached

    rate = one['options']['lr']
    made = {key: value for key, value in one.items() if key not in ('key', 'part')}
    plain = keyed({**made, 'method': 'full', 'options': dict(lr=rate)}) if one['method'] == 'wise_ft' else one
    has_alphas = plain['method'] == 'full' and rate in WISE_RATES and one['part'] in ('near', 'shift')
    places = {} if one['part'] == 'long' else folders
    rows = cached.run(dict(plain, folders=places, alphas=ALPHAS if has_alphas else ()))
    for row in rows:
        changed = dict(method='wise_ft', options=dict(lr=rate, alpha=row.pop('alpha'))) if 'alpha' in row else {}
        row.update({key: {**made, **plain, **changed}[key] for key in ('method', 'options')})
        row['key'] = keyed({**made, **changed, 'method': row['method'], 'options': row['options']})['key']
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument('--pacs', type=Path, help='folder with art_painting, cartoon, photo and sketch')
    parser.add_argument('--caltech', type=Path, help='folder with train and test')
    parser.add_argument('--imagenet', type=Path, help='folder with 0000.jpg to 0999.jpg, one photo of each class')
    parser.add_argument('--parts', nargs='+', default=list(NEEDS), choices=list(NEEDS), help='run these alone')
    args = parser.parse_args()
    folders = {name: str(place.resolve()) for name in ('pacs', 'caltech', 'imagenet') if (place := vars(args)[name])}
    parts = [part for part in args.parts if folders.keys() >= set(NEEDS[part])]
    study = Study((ROWS,), FIELDS, partial(plan, parts=parts), partial(measure, folders=folders))
    for part in set(args.parts) - set(parts) if not args.tables else ():
        missing = ' and '.join(f'--{name}' for name in NEEDS[part] if name not in folders)
        console.print(f'{part} is left out: it needs {missing}')
    if args.again:
        quiet()
        return study.run_again(args.again, args.seed, 'test')
    if not args.tables:
        subprocess.run([sys.executable, HERE / 'data.py'], check=True)
        study.run_missing(args.workers, args.minutes)
    import natural_page
    import tables

    natural_page.show(console)
    tables.show(read(RESULTS), read(ROWS), console)


if __name__ == '__main__':
    main()
