"""The study of the drift budget: does one number mean the same everywhere, and what does it cost?

make evidence                                          # runs what is missing of both studies, then prints all pages
python benchmarks/evidence/budget.py --minutes 60      # begins nothing new after an hour; the same command goes on
python benchmarks/evidence/budget.py --tables          # prints the page from budget.csv
"""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from plan import TASKS
from rows import HERE, Study, arguments, console, keyed, quiet, read
from study import RESULTS

ROWS = HERE / 'budget.csv'
MEASURED = [
    *('value', 'agreement_restored', 'kl_restored'),
    *('drift_shallow', 'drift_middle', 'drift_deep', 'drift_mean', 'drift_largest'),
]
FIELDS = [
    *('key', 'part', 'network', 'task', 'method', 'options', 'seed'),
    *MEASURED,
    *('iters', 'batch', 'size', 'seconds', 'commit', 'machine', 'date'),
]
MOBILENET, LITE0 = 'mobilenet-v2', 'efficientnet-lite0'
NETWORKS = {MOBILENET: 'MobileNetV2', LITE0: 'EfficientNet-Lite0'}
SEEDS = (0, 1, 2)
DENSE_SEED = 100  # that of results.csv, whose rows on validation serve here too
BUDGET, LEVEL = 0.05, 0.03  # the numbers that are kept while all else changes
SMALL = 0.02  # a budget that is kept over the rates too
RATE = 1e-3
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
LENGTHS, BATCHES = (50, 100, 200), (16, 32, 64)
OPTIMIZERS = dict(AdamW=RATE, Adam=RATE, SGD=1e-2, Adafactor=1e-2)  # with rates that suit each
BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
LEVELS = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6)
ALPHAS = (5.0, 15.0, 50.0, 150.0, 500.0)
PLAIN = dict(cached=(1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3), dense=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2))
SHAPES = {  # mean: from the layer nearest the input to the last
    0.1: dict(growing=(0.04, 0.16)),
    0.05: dict(growing=(0.02, 0.08), steep=(0.009, 0.091), falling=(0.08, 0.02)),
    0.02: dict(growing=(0.008, 0.032), steep=(0.0036, 0.0364), falling=(0.032, 0.008)),
}
TRADES = (  # task, network, rate; in the order they are run
    ('fashion', MOBILENET, RATE),
    ('fashion', LITE0, 2e-3),
    ('digits', MOBILENET, RATE),
    ('nuclei pixels', MOBILENET, 4e-3),
    ('composite boxes', MOBILENET, 2e-3),
)


def trial(part: str, task: str, method: str, options: dict, seed: int, **changed) -> dict:
    """One run; ``key`` is a hash of all that determines its result, so parts may share runs."""
    if task in TASKS:
        made = dict(TASKS[task], method=method, options=options, seed=seed, split='val')
    else:
        made = dict(data=task, network=MOBILENET, size=50, batch=32, iters=100, side=32)
        made.update(method=method, options=options, seed=seed, **changed)
    return dict(keyed(made), part=part, task=task)


def strengths(**rest) -> tuple[dict, dict]:
    """The two that are compared: the same budget, and the same level, in all layers."""
    return dict(rest, max_drift=BUDGET), dict(rest, max_level=LEVEL, power=0.0)


def rates(seed: int) -> Iterator[dict]:
    for network in NETWORKS:
        for lr in RATES:
            for options in (*strengths(lr=lr), dict(lr=lr, max_drift=SMALL)):
                yield trial('rates', 'fashion', 'olor', options, seed, network=network)


def free(seed: int) -> Iterator[dict]:
    """How far weights move at these rates when nothing holds them."""
    for network in NETWORKS:
        for lr in RATES:
            yield trial('rates', 'fashion', 'full', dict(lr=lr), seed, network=network)


def others(seed: int) -> Iterator[dict]:
    """Lengths, batches and optimizers."""
    changes = [dict(iters=iters) for iters in LENGTHS] + [dict(batch=batch) for batch in BATCHES]
    for network in NETWORKS:
        for changed in changes:
            for options in strengths(lr=RATE):
                part = 'lengths' if 'iters' in changed else 'batches'
                yield trial(part, 'fashion', 'olor', options, seed, network=network, **changed)
        for name, lr in OPTIMIZERS.items():
            for options in strengths(lr=lr, **({} if name == 'AdamW' else dict(optimizer=name))):
                yield trial('optimizers', 'fashion', 'olor', options, seed, network=network)


def trades(task: str, network: str, lr: float, seed: int) -> Iterator[dict]:
    """Every method at all its strengths, the budgets and levels first; plain fine-tuning has rates for strengths."""
    changed = {} if task in TASKS else dict(network=network)
    made = [('olor', dict(max_drift=budget)) for budget in BUDGETS]
    made += [('olor', dict(max_level=level, power=0.0)) for level in LEVELS]
    made += [('olor', dict(max_level=level)) for level in LEVELS]
    made += [('l2sp_decoupled', dict(max_level=alpha)) for alpha in ALPHAS]
    made += [('spd', dict(max_level=strength)) for strength in (0.5, 1.0, 2.0)]
    made = [(method, dict(options, lr=lr)) for method, options in made]
    made += [('full', dict(lr=rate)) for rate in PLAIN['dense' if task in TASKS else 'cached']]
    for method, options in made:
        yield trial(f'trade-off at {lr:g}', task, method, options, seed, **changed)


def shapes(seed: int) -> Iterator[dict]:
    for _, network, lr in TRADES[:2]:
        for mean, pairs in SHAPES.items():
            for max_drift in (mean, *map(list, pairs.values())):
                options = dict(lr=lr, max_drift=max_drift)
                yield trial('shapes', 'fashion', 'olor', options, seed, network=network)


def plan() -> Iterator[dict]:
    """All trials, those first that decide most."""
    first, second, third = SEEDS
    fashion = partial(trades, *TRADES[0])

    def lite0(seed: int) -> Iterator[dict]:
        """Of the second network's trade-off budgets, levels and plain fine-tuning alone."""
        for one in trades(*TRADES[1], seed):
            if one['method'] == 'full' or {'max_drift', 'power'} & one['options'].keys():
                yield one

    for of_seed, seed in (
        *((rates, first), (fashion, first), (shapes, first), (free, first), (lite0, first), (rates, second)),
        *((rates, third), (fashion, second), (shapes, second), (others, first), (fashion, third), (shapes, third)),
        *((free, second), (free, third), (others, second), (others, third)),
    ):
        yield from of_seed(seed)
    small, dense = ([trade for trade in TRADES[1:] if (trade[0] in TASKS) == is_dense] for is_dense in (False, True))
    a_seed_of_every_task = (small, first), (dense, DENSE_SEED)
    more = (small, second), (small, third), (dense[:1], first)  # boxes, which take longest, have one seed
    for tasks, seed in (*a_seed_of_every_task, *more):
        for task in tasks:
            yield from trades(*task, seed)


def results() -> dict[str, dict]:
    """Rows by key, those of the older study too where they are the same runs."""
    return {row['key']: row for row in (*read(RESULTS), *read(ROWS)) if row['method'] != 'wise_ft'}


def measure(one: dict) -> list[dict]:
    """Run a trial, in memory or, where it is one of the older study, as that does."""
    if one['task'] in TASKS:
        import trial as dense

        return dense.measure(one)[:1]
    import cached

    measured = cached.run(one)[0]
    return [dict(measured, value=measured['test'])]


def main() -> None:
    args = arguments(__doc__).parse_args()
    study = Study((ROWS, RESULTS), FIELDS, lambda rows: plan(), measure)
    if args.again:
        quiet()
        return study.run_again(args.again, args.seed)
    if not args.tables:
        subprocess.run([sys.executable, HERE / 'data.py'], check=True)
        study.run_missing(args.workers, args.minutes)
    import budget_page

    budget_page.show(list(plan()), results(), console)


if __name__ == '__main__':
    main()
