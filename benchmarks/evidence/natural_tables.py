"""The runs of natural.csv as frames: settings that are best on validation, paired differences, fronts."""

import json

import numpy as np
import pandas as pd
from natural import FAMILIES, LITE0, PLAIN, STRENGTHS, Cell, settings
from scipy import stats
from tables import markdown, mean_sd

OLD, NEW, HELD_OUT = 'old_restored', 'test', 'held_out'
MEASURED = {
    'val': 'validation, %',
    NEW: 'test, %',
    HELD_OUT: 'held out, %',
    OLD: 'old task, statistics restored, %',
    'old': 'as it is, %',
    'agreement_restored': 'agreement, restored, %',
    'agreement': 'agreement, as it is, %',
    'drift_mean': 'drift, %',
}
NUMBERS = [*MEASURED, 'before', 'kl_restored', 'seed', 'size', 'iters', 'seconds']
SIGNIFICANT = 0.05
COLUMNS = ['mean', 'n', 'difference', 'low', 'high', 'p']


def setting_of(family: str, options: dict) -> str:
    """The options, without the rate where it is the same for all settings of a family."""
    shown = {key: value for key, value in sorted(options.items()) if key != 'lr' or family not in STRENGTHS}
    return ', '.join(f'{key} {value}' for key, value in shown.items())


def family_of(method: str, options: dict) -> str:
    known = dict(full=PLAIN, wise_ft='WiSE-FT', linear_probe='linear probing')
    if method in known:
        return known[method]
    tried = {key: value for key, value in options.items() if key != 'lr'}
    return next(name for name, (of, strengths) in STRENGTHS.items() if of == method and tried in strengths)


ORDER = {
    family: list(dict.fromkeys(setting_of(family, options) for _, options in settings(family, 1e-3)))
    for family in FAMILIES
}


def frame_of(rows: list[dict]) -> pd.DataFrame:
    """A row a run, with its family, its setting and its cell: data, images a class and network."""
    frame = pd.DataFrame(rows)
    if frame.empty:
        return pd.DataFrame(
            columns=[*NUMBERS, 'key', 'part', 'data', 'network', 'family', 'setting', 'rate', 'cell', 'machine']
        )
    for column in NUMBERS:
        frame[column] = pd.to_numeric(frame[column])
    options = [json.loads(text) for text in frame['options']]
    frame['family'] = [family_of(method, of) for method, of in zip(frame['method'], options)]
    frame['setting'] = [setting_of(family, of) for family, of in zip(frame['family'], options)]
    frame['rate'] = [of['lr'] for of in options]
    second = np.where(frame['network'] == LITE0, ' lite0', '')
    frame['cell'] = frame['data'] + ' ' + frame['size'].astype(int).astype(str) + second
    return frame.drop_duplicates('key', keep='last')


def of_cell(rows: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    return rows[(rows['data'] == cell.data) & (rows['size'] == cell.size)]


def chosen(rows: pd.DataFrame) -> dict[str, str]:
    """Family to the setting with the highest mean on validation, over the seeds that have all settings in all cells."""
    found, cells = {}, rows['cell'].nunique()
    for family, of in rows.groupby('family', sort=False):
        table = of.pivot_table(index=['cell', 'seed'], columns='setting', values='val').reindex(columns=ORDER[family])
        table = table.dropna().groupby('seed').filter(lambda of_seed: len(of_seed) == cells)
        if len(table):
            found[family] = table.mean().idxmax()
    return found


def complete(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the seeds with which most settings were run: of the others, only what had been chosen was."""
    counts = rows.groupby('seed').size()
    return rows[rows['seed'].isin(counts.index[counts == counts.max()])]


def of_settings(rows: pd.DataFrame, picked: dict[str, str]) -> pd.DataFrame:
    return rows[[picked.get(family) == setting for family, setting in zip(rows['family'], rows['setting'])]]


def by_seed(rows: pd.DataFrame, picked: dict[str, dict[str, str]], key: str) -> pd.DataFrame:
    """A measure of the picked settings, mean over cells: a row a seed that has all cells, a column a family."""
    parts = [
        of_settings(rows[rows['cell'] == cell], of_cell).pivot(index='seed', columns='family', values=key)
        for cell, of_cell in picked.items()
    ]
    table = (sum(parts[1:], parts[0]) / len(parts)).dropna(axis=1, how='all')
    return table[[family for family in FAMILIES if family in table]]


def compared(values: pd.DataFrame, reference: str = PLAIN) -> pd.DataFrame:
    """Mean, n, and the paired difference to plain fine-tuning with its 95 % interval and Holm's p, a row a family."""
    found = {}
    for family in values:
        pairs = (values[family] - values[reference]).dropna()
        row = dict(mean=values[family].mean(), n=values[family].count(), difference=pairs.mean())
        if len(pairs) > 1 and family != reference:
            test = stats.ttest_1samp(pairs, 0)
            low, high = test.confidence_interval(1 - SIGNIFICANT)
            row.update(low=low, high=high, p=1.0 if np.isnan(test.pvalue) else test.pvalue)
        found[family] = row
    table = pd.DataFrame.from_dict(found, orient='index').reindex(columns=COLUMNS)
    ranked = table['p'].dropna().sort_values()
    steps = ranked * np.arange(len(ranked), 0, -1)
    return table.assign(p=steps.cummax().clip(upper=1.0).reindex(table.index))


def interval(row: pd.Series) -> str:
    """The difference with its interval; a star where it is significant after Holm's correction."""
    if np.isnan(row['difference']) or row.name == PLAIN:
        return ''
    if np.isnan(row['low']):
        return f'{row["difference"]:+.1f}'
    star = ' \\*' if row['p'] < SIGNIFICANT else ''
    return f'{row["difference"]:+.1f} [{row["low"]:+.1f}, {row["high"]:+.1f}]{star}'


def keepers(rows: pd.DataFrame) -> dict[str, str]:
    """Family to the setting that keeps most of the old task, of those at most a point below plain on validation."""
    rows, best = complete(rows), chosen(rows)
    if PLAIN not in best:
        return {}
    means = rows.groupby(['family', 'setting'])[['val', OLD]].mean()
    floor = means.loc[(PLAIN, best[PLAIN]), 'val'] - 1
    good = means[means['val'] >= floor].reset_index()
    good = good[good['family'].isin(best)]
    return {family: of.loc[of[OLD].idxmax(), 'setting'] for family, of in good.groupby('family')}


def averaged(rows: pd.DataFrame, new: str = NEW, old: str = OLD) -> pd.DataFrame:
    """New and old task, mean over cells: a row a family, setting and seed that has all cells."""
    by = rows.groupby(['family', 'setting', 'seed'], sort=False)
    table = by.agg(**{NEW: (new, 'mean'), OLD: (old, 'mean')}, cells=('cell', 'nunique'))
    return table[table['cells'] == rows['cell'].nunique()].reset_index()


def against(rows: pd.DataFrame, one: tuple[str, str], other: tuple[str, str]) -> pd.DataFrame:
    """One family and setting against another one: a row for the new task, and one for the old."""
    tables = {key: of.set_index('seed') for key, of in rows.groupby(['family', 'setting'], sort=False)}
    pairs = [pd.DataFrame({'one': tables[one][key], 'other': tables[other][key]}) for key in (NEW, OLD)]
    return pd.concat([compared(pair, 'other').loc[['one']] for pair in pairs], keys=(NEW, OLD)).droplevel(1)


def better_in_both(rows: pd.DataFrame, family: str, setting: str) -> list[str]:
    """The settings of other families that are better in both tasks by more than their 95 % intervals."""
    own = family, setting
    others = [key for key in dict.fromkeys(zip(rows['family'], rows['setting'])) if key[0] != family]
    return [f'{key[0]} ({key[1]})' for key in others if (against(rows, key, own)['low'] > 0).all()]


def details(rows: pd.DataFrame) -> str:
    """Every setting of a cell (or of several, mean over them), as mean ± sd over seeds."""
    lines = []
    for family in [family for family in FAMILIES if family in set(rows['family'])]:
        of_family = rows[rows['family'] == family]
        for setting in [one for one in ORDER[family] if one in set(of_family['setting'])] or [
            *of_family['setting'].unique()
        ]:
            of = of_family[of_family['setting'] == setting]
            means = of.groupby('seed')[list(MEASURED)].mean()
            line = {'': family, 'setting': setting, 'n': len(means)}
            for key, name in MEASURED.items():
                if means[key].notna().any():
                    line[name] = mean_sd(means[key] * (100 if 'drift' in key else 1))
            lines.append(line)
    return markdown(pd.DataFrame(lines).fillna(''))
