"""What the study runs: every trial that can be named, given the results so far.

A trial is a dict that :mod:`trial` can run; its ``key`` is a hash of all that determines its result.
"""

import json
from collections.abc import Iterator

from rows import keyed

TUNING_SEED = 100
FASHION = dict(kind='classification', data='fashion')
DIGITS = dict(kind='classification', data='digits')
LENGTH = {10: 100, 50: 200, 200: 400}  # iterations for so many images a class
# what is tuned, and the tasks the choice is used on, with the seeds of the final runs
TASKS = {
    'fashion-50': dict(FASHION, size=50, batch=32, iters=LENGTH[50]),
    'nuclei masks': dict(kind='instance', data='nuclei', batch=4, iters=80),
    'nuclei pixels': dict(kind='semantic', data='nuclei', batch=4, iters=80),
    'composite boxes': dict(kind='detection', data='composite', batch=4, iters=200),
    'tree boxes': dict(kind='detection', data='trees', batch=2, iters=150),
    'digits-50': dict(DIGITS, size=50, batch=32, iters=LENGTH[50]),
    'composite masks': dict(kind='instance', data='composite', batch=4, iters=200),
    'composite pixels': dict(kind='semantic', data='composite', batch=4, iters=240),
}
USED_ON = {
    f'{name}-50': {f'{name}-{size}': dict(kind, size=size, batch=32, iters=LENGTH[size]) for size in LENGTH}
    for name, kind in (('fashion', FASHION), ('digits', DIGITS))
}
BOXES = ('detection', 'instance')
RATES = dict(classification=(5e-4, 1e-3, 2e-3), semantic=(2e-3, 4e-3), **dict.fromkeys(BOXES, (1e-3, 2e-3)))
ALONE = dict(  # of methods without a strength of their own, as many as rates and strengths of the others
    full=dict(
        classification=(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
        semantic=(1e-3, 2e-3, 4e-3, 8e-3),
        **dict.fromkeys(BOXES, (5e-4, 1e-3, 2e-3, 4e-3)),
    ),
    linear_probe=dict(
        classification=(5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
        semantic=(2e-3, 5e-3, 1e-2, 2e-2),
        **dict.fromkeys(BOXES, (1e-3, 2e-3, 5e-3, 1e-2)),
    ),
)
SEVEN = ('full', 'linear_probe', 'layer_decay', 'l2sp', 'l2sp_decoupled', 'spd', 'olor')
METHODS = (*SEVEN, 'wise_ft')
WISE_FT = (0.2, 0.4, 0.6, 0.8, 0.9)
POINT = dict(classification=1.0, semantic=1.0, **dict.fromkeys(BOXES, 0.01))  # one of a hundred, in each metric's unit


def grid(method: str, kind: str) -> list[dict]:
    """The same number of settings for every method: six in classification, four elsewhere."""
    if method in ALONE:
        return [dict(lr=lr) for lr in ALONE[method][kind]]
    key, values = {
        'layer_decay': ('decay', (0.8, 0.9)),
        'l2sp': ('max_level', (1e-3, 1e-2)),
        'l2sp_decoupled': ('max_level', (5.0, 50.0)),
        'spd': ('max_level', (0.5, 1.0)),
        'olor': ('max_level', (0.02, 0.1)),
    }[method]
    return [{'lr': lr, key: value} for lr in RATES[kind] for value in values]


def trial(part: str, task: str, of_task: dict, method: str, options: dict, seed: int, split: str, **more) -> dict:
    made = dict(of_task, method=method, options=options, seed=seed, split=split, **more)
    return dict(keyed(made), part=part, task=task)


def tuning(task: str, method: str) -> list[dict]:
    interpolated = dict(wise_ft=WISE_FT) if method == 'full' else {}
    return [
        trial('tuning', task, TASKS[task], method, options, TUNING_SEED, 'val', **interpolated)
        for options in grid(method, TASKS[task]['kind'])
    ]


class Choices:
    """The settings that were best on validation, for what has been tuned to its end."""

    def __init__(self, results: list[dict]):
        self.results = {row['key']: row for row in results if row['method'] != 'wise_ft'}
        self.interpolated = [row for row in results if row['method'] == 'wise_ft']

    def best(self, task: str, method: str) -> dict | None:
        """Options with the highest validation metric; of equals those that are listed first."""
        rows = [self.results.get(t['key']) for t in tuning(task, method)]
        if None in rows:
            return None
        return json.loads(max(rows, key=lambda row: float(row['value']))['options'])

    def alpha(self, task: str) -> float | None:
        """That of WiSE-FT, between the best fully fine-tuned weights and the pre-trained ones."""
        options = self.best(task, 'full')
        if options is None:
            return None
        key = next(t['key'] for t in tuning(task, 'full') if t['options'] == options)
        rows = [row for row in self.interpolated if row['key'] == key]
        return float(max(rows, key=lambda row: float(row['value']))['alpha'])

    def keeper(self, task: str, method: str) -> dict | None:
        """The run on validation that changed the old classifier least, at most a point below the best of `full`."""
        if self.best(task, 'full') is None or (method in SEVEN and self.best(task, method) is None):
            return None
        full = [t['key'] for t in tuning(task, 'full')]
        floor = max(float(self.results[key]['value']) for key in full) - POINT[TASKS[task]['kind']]
        if method == 'wise_ft':
            rows = [row for row in self.interpolated if row['key'] in full]
        else:
            rows = [self.results[t['key']] for t in tuning(task, method)]
        good = [row for row in rows if float(row['value']) >= floor]
        return min(good, key=lambda row: float(row['kl_restored']), default=None)


def plan(results: list[dict], tasks: list[str]) -> Iterator[dict | None]:
    """Trials in the order they are worth running; None stands for one that depends on results still to come."""
    choices = Choices(results)
    for tuned in tasks:
        for method in SEVEN:
            yield from tuning(tuned, method)
        if tuned == 'fashion-50':
            yield from levels(tuned, choices)
        for task, of_task in USED_ON.get(tuned, {tuned: TASKS[tuned]}).items():
            for seed in range(5 if of_task['kind'] == 'classification' else 3):
                for method in SEVEN:
                    options = choices.best(tuned, method)
                    more = dict(wise_ft=[choices.alpha(tuned)]) if method == 'full' else {}
                    yield options and trial('final', task, of_task, method, options, seed, 'test', **more)
        if tuned == 'fashion-50':
            yield from trade(tuned, choices)
            yield from other_photos(tuned, choices)
            yield from studies(tuned, choices)
        if tuned == 'composite boxes':
            second = dict(TASKS[tuned], subset='_new')
            yield from chain('boxes of 0-4, then 5-9', tuned, second, dict(subset='_old'), choices, seeds=3)


def trade(tuned: str, choices: Choices) -> Iterator[dict | None]:
    """Every method at the settings that keep most for a point of the metric; those of WiSE-FT train fully."""
    for method in METHODS:
        kept = choices.keeper(tuned, method)
        if kept is None:
            if choices.best(tuned, 'full') is None:
                yield None
            continue
        of_run, more = method, {}
        options = json.loads(kept['options'])
        if method == 'wise_ft':
            of_run, more = 'full', dict(wise_ft=[float(kept['alpha'])])
            options = json.loads(choices.results[kept['key']]['options'])
        for seed in range(5):
            yield trial('trade', tuned, TASKS[tuned], of_run, options, seed, 'test', variant=method, **more)


def other_photos(tuned: str, choices: Choices) -> Iterator[dict | None]:
    """Runs of `trade` once more, and the old classifier asked about photos that have nothing to do with the others."""
    for once in trade(tuned, choices):
        if once and once['method'] == once['variant']:
            of_run = once['method'], once['options'], once['seed'], once['split']
            yield trial('photos', tuned, TASKS[tuned], *of_run, photos='opencv')


def studies(tuned: str, choices: Choices) -> Iterator[dict | None]:
    """What is asked of OLOR alone, at the learning rate a user has before adding it, and the chain of tasks."""
    of_task, olor, full = TASKS[tuned], choices.best(tuned, 'olor'), choices.best(tuned, 'full')
    at = full and {**full, 'max_level': 0.1}
    for seed in range(5):
        for name, options in dict(
            olor=dict(),
            uniform=dict(power=0.0),
            inverted=dict(inverted=True),
            tensor=dict(layer_index='tensor'),
            constant=dict(coupling='constant'),
            uniform_new=dict(power=0.0, pretrained='all'),  # provenance off: the new head is anchored as well
            uniform_strong=dict(power=0.0, max_level=0.3),
            uniform_strong_new=dict(power=0.0, max_level=0.3, pretrained='all'),
        ).items():
            yield at and trial('ablation', tuned, of_task, 'olor', {**at, **options}, seed, 'test', variant=name)
        for method, options in dict(full=full, olor=olor).items():
            yield options and trial('statistics', tuned, of_task, method, options, seed, 'test', norm_eval=True)
    yield from chain('digits, then fashion', tuned, of_task, dict(data='digits'), choices, seeds=5)


def chain(name: str, tuned: str, second: dict, first: dict, choices: Choices, seeds: int) -> Iterator[dict | None]:
    """Two tasks, one after the other, with what was best on validation, and with two that are pulled back more."""
    best = {m: choices.best(tuned, m) for m in ('full', 'layer_decay', 'l2sp_decoupled', 'spd', 'olor')}
    pulled = dict(olor=best['full'] and {**best['full'], 'max_level': 0.1})
    if kept := choices.keeper(tuned, 'l2sp_decoupled'):
        pulled['l2sp_decoupled'] = json.loads(kept['options'])
    for settings in (best, pulled):
        for seed in range(seeds):
            for method, options in settings.items():
                yield options and trial('chain', name, second, method, options, seed, 'test', chain=first)


def levels(tuned: str, choices: Choices) -> Iterator[dict | None]:
    """Levels, powers, and SGD; and levels by their half-life, over runs of different length, batch and data.

    All but those of SGD at the learning rate that is best without rollback, as a user has it who adds it.
    """
    of_task, full = TASKS[tuned], choices.best(tuned, 'full')
    lr = full and full['lr']
    for level in (0.003, 0.01, 0.03, 0.1, 0.3):
        for power in (0.0, 1.0, 3.0):
            options = dict(lr=lr, max_level=level, power=power)
            yield lr and trial('levels', tuned, of_task, 'olor', options, TUNING_SEED, 'val')
        options = dict(lr=lr, max_level=level, coupling='constant')
        yield lr and trial('levels', tuned, of_task, 'olor', options, TUNING_SEED, 'val')
    for rate in (3e-3, 1e-2, 3e-2):
        for level in (0.02, 0.1):
            sgd = dict(type='olor_mm.SGDOLOR', momentum=0.9, weight_decay=1e-4)
            options = dict(lr=rate, max_level=level, optimizer=sgd)
            yield trial('levels', tuned, of_task, 'olor', options, TUNING_SEED, 'val')
    for seed in range(3):
        for iters, batch, size in ((100, 32, 50), (200, 32, 50), (400, 32, 50), (200, 16, 50), (200, 32, 200)):
            for half_life in (5, 20, 80, 320):
                options = dict(lr=lr, max_level=1 - 0.5 ** (1 / half_life))
                changed = dict(of_task, iters=iters, batch=batch, size=size)
                yield lr and trial('transfer', tuned, changed, 'olor', options, seed, 'val', half_life=half_life)
