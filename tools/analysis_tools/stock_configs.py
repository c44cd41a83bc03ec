"""Put rollback on every stock config of mmdet, mmseg and mmpretrain, and report which of them work.

python tools/analysis_tools/stock_configs.py                      # all of them, on two processes: about an hour
python tools/analysis_tools/stock_configs.py --match convnext --work-dir /tmp/coverage --out /tmp/coverage
python tools/analysis_tools/stock_configs.py --networks --out /tmp/coverage     # only models with several

For every distinct model: build it and its optimizer, with the stock constructor and with ours; take two steps with
random gradients and compare the first with the formula; compare the layer index with a forward pass; list what each
network got where there are several. Finished rows are kept in the work directory and not computed again.
"""

import argparse
import contextlib
import copy
import csv
import hashlib
import importlib
import json
import logging
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from rich.progress import track
from torch import nn

import olor_mm  # noqa: F401  registers the constructor
from execution import execution_order, order_violations
from olor_mm.cli.parser import Parser
from olor_mm.layers import backbones, layer_index, networks
from olor_mm.optim import layer_penalty

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
COLUMNS = ('library', 'model', 'backbone', 'parameters', 'layers', 'groups', 'order', 'result', 'configs', 'config')
SITE = f'{Path(torch.__file__).parents[1]}/'
IGNORED = (
    'init_cfg',
    'pretrained',
    'train_cfg',
    'test_cfg',
    'data_preprocessor',
)  # what leaves the parameters as they are
LR, DECAY, LEVEL = 1e-4, 0.05, 1e-2
README_WRAPPER = dict(
    type='OptimWrapper',
    constructor='OLOROptimWrapperConstructor',
    optimizer=dict(type='AdamWOLOR', lr=LR, weight_decay=DECAY),
)
PARAMWISE = dict(norm_decay_mult=0.0, rollback=dict(max_level=LEVEL, min_level=0.0, power=1.0))
MOST_GRADIENTS = 30_000_000  # parameters that take a step; of larger models, the first and the small ones
SECONDS = 600  # for one model
SIZES = (224, 256, 64, 512, 32)  # of images, where a backbone does not say what it takes


def stock_configs(library: str) -> list[Path]:
    """All config files of an installed library, without the fragments under ``_base_``."""
    root = Path(importlib.import_module(library).__file__).parent / '.mim' / 'configs'
    return sorted(path for path in root.rglob('*.py') if '_base_' not in path.parts and path.stem != '__init__')


def read(path: str) -> tuple[str, str, str]:
    """Path; the key of its model and optimizer, or ''; why it cannot be read, or ''."""
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        return path, '', f'the config cannot be read: {shortened(error)}'
    if cfg.get('model') is None:
        return path, '', 'a fragment without a model'
    found = dict(model=cfg.to_dict()['model'], optim_wrapper=cfg.to_dict().get('optim_wrapper'))
    text = json.dumps(without(found), sort_keys=True, default=str)
    return path, hashlib.sha256(text.encode()).hexdigest()[:16], ''


def without(cfg, keys=IGNORED):
    """A config without some keys, at any depth."""
    if isinstance(cfg, dict):
        return {key: without(value, keys) for key, value in cfg.items() if key not in keys}
    return [without(value, keys) for value in cfg] if isinstance(cfg, (list, tuple)) else cfg


def shortened(error: BaseException) -> str:
    """Class and first line of an error."""
    text = ' '.join(str(error).replace(SITE, '').split())
    return f'{type(error).__name__}: {text[:160]}'


@contextlib.contextmanager
def uninitialised() -> Iterator[None]:
    """Models are built in a fraction of the time and memory where nothing is written into their weights."""
    fillers = [name for name in dir(nn.init) if name.endswith('_') and not name.startswith('_')]
    saved = {name: getattr(nn.init, name) for name in fillers}
    for name in fillers:
        setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    try:
        yield
    finally:
        for name, filler in saved.items():
            setattr(nn.init, name, filler)


def examine(task: tuple[str, str, str, bool]) -> dict:
    """One row of the table for a config; of the networks alone if the last of the task says so."""
    path, key, library, networks_alone = task
    row = dict.fromkeys(COLUMNS, '') | dict(key=key, library=library)
    return in_time(path, row, lambda: _examine(path, row, networks_alone))


def in_time(path: str, row: dict, fill: Callable[[], None]) -> dict:
    """The row of a config, once ``fill`` has filled it; its result says it if that fails or takes longer."""
    row['config'] = path.split('/configs/')[-1]
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(SECONDS)
    try:
        os.chdir(path.split('/configs/')[0])  # some name the config of a teacher as it is from there
        fill()
    except Exception as error:
        row['result'] = f'FAILED: {shortened(error)}'
    finally:
        signal.alarm(0)
    return row


def out_of_time(*_) -> None:
    raise TimeoutError(f'not done after {SECONDS} seconds')


def _examine(path: str, row: dict, networks_alone: bool) -> None:
    cfg = Config.fromfile(path)
    init_default_scope(cfg.get('default_scope') or row['library'])
    row['model'] = name_of(cfg.model.get('type'))
    row['backbone'] = ' + '.join(dict.fromkeys(backbone_types(cfg.model.to_dict())))
    forget_weights(cfg.model)
    try:
        with uninitialised():
            model = MODELS.build(cfg.model)
    except Exception as error:
        row['result'] = f'not built: {shortened(error)}'
        return
    row['parameters'] = sum(p.numel() for p in model.parameters())
    if not row['parameters']:
        row['result'] = 'has no parameters'
        return
    parts = dict(backbones(model))
    row['backbone'] = ' + '.join(dict.fromkeys(type(part).__name__ for part in parts.values()))
    index = layer_index(model)
    row['networks'] = [*networks_of(model, index)]
    if networks_alone:
        row['result'] = 'ok'
        return
    check_own_optimizer(model, cfg.get('optim_wrapper'))
    row['layers'] = max(n for _, n in index.values()) + 1
    row['groups'] = check_steps(model, index)
    row['order'] = '; '.join(dict.fromkeys(check_order(part, index, prefix) for prefix, part in parts.items()))
    row['result'] = 'ok' if 'VIOLATED' not in row['order'] else 'FAILED: order of execution'


def networks_of(model: nn.Module, index: dict[str, tuple[int, int]]) -> Iterator[tuple]:
    """Prefix, class, tensors, layers, level of the first and of the last layer of each network in a model.

    Those that are kept apart from it, so that no optimizer sees them, have no layers.
    """
    for prefix, part, _ in networks(model):
        layers = sorted(layer for name, layer in index.items() if name.startswith(prefix))
        levels = [f'{layer_penalty(*layers[at], LEVEL, 0.0, 1.0):.4f}' for at in (0, -1)] if layers else ['', '']
        yield prefix, type(part).__name__, len(layers), len(set(layers)), *levels
    for name, part in vars(model).items():
        if isinstance(part, nn.Module):
            yield f'({name})', type(part).__name__, 0, 0, '', ''


def name_of(kind) -> str:
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def backbone_types(cfg) -> Iterator[str]:
    """Types of all backbones in a model's config."""
    if isinstance(cfg, dict):
        for key, value in cfg.items():
            if key == 'backbone' and isinstance(value, dict) and 'type' in value:
                yield name_of(value['type'])
            else:
                yield from backbone_types(value)
    elif isinstance(cfg, (list, tuple)):
        for value in cfg:
            yield from backbone_types(value)


def forget_weights(cfg) -> None:
    """Take the checkpoints out of a model's config: they are not here, and the model builds without them."""
    for value in cfg.values() if isinstance(cfg, dict) else cfg if isinstance(cfg, (list, tuple)) else ():
        forget_weights(value)
    if isinstance(cfg, dict):
        for key in ('init_cfg', 'pretrained', 'teacher_ckpt'):
            if isinstance(cfg.get(key), str) or 'Pretrained' in str(cfg.get(key)):
                cfg[key] = None
            elif cfg.get(key) is True:  # of a TIMM wrapper
                cfg[key] = False


def check_own_optimizer(model: nn.Module, wrapper: dict | None) -> None:
    """Where the stock constructor takes the config's own optimizer, ours has to.

    Raises:
        RuntimeError: If it does not.
    """
    wrapper = {key: value for key, value in (wrapper or {}).items() if key not in ('loss_scale', 'dtype')}
    if wrapper.pop('constructor', None) or 'optimizer' not in wrapper:
        return  # layer-wise decay, which rollback takes the place of
    if name_of(wrapper.get('type', 'OptimWrapper')) == 'AmpOptimWrapper':
        wrapper['type'] = 'OptimWrapper'
    try:
        build_optim_wrapper(model, copy.deepcopy(wrapper))
    except Exception:
        return
    try:
        build_optim_wrapper(model, dict(copy.deepcopy(wrapper), constructor='OLOROptimWrapperConstructor'))
    except Exception as error:
        raise RuntimeError(f'the stock constructor takes optim_wrapper, ours does not: {shortened(error)}') from error


def check_steps(model: nn.Module, index: dict[str, tuple[int, int]]) -> int:
    """Two steps of AdamWOLOR as the README has it; the number of groups.

    Raises:
        RuntimeError: If the first step is not AdamW's and a lerp, the second not finite, an anchor is missing or too
            many, or groups are not merged.
    """
    names = {p: name for name, p in model.named_parameters()}
    noise = torch.rand(1_000_003, generator=torch.Generator().manual_seed(0)) * 2 - 1
    budget = MOST_GRADIENTS
    starts: dict[nn.Parameter, torch.Tensor] = {}
    with torch.no_grad():
        for p in names:
            if not p.requires_grad or (p.numel() > budget and starts):
                continue
            budget -= p.numel()
            p.copy_(0.1 * tiled(noise, p))
            p.grad = tiled(noise.flip(0), p).clone()
            starts[p] = p.flatten()[:1000].double().clone()
    is_frozen = all(index[name][0] == index[name][1] for p, name in names.items() if p.requires_grad)
    top = 0.0 if is_frozen else LEVEL  # linear probing
    paramwise = copy.deepcopy(PARAMWISE)
    paramwise['rollback'].update(pretrained='all', max_level=top)
    optimizer = build_optim_wrapper(model, dict(README_WRAPPER, paramwise_cfg=paramwise)).optimizer
    layers = max(n for _, n in index.values()) + 1
    if len(optimizer.param_groups) > 2 * layers + 4:
        raise RuntimeError(f'{len(optimizer.param_groups)} groups for {layers} layers')
    optimizer.step()
    decay = {p: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    rolled_back = set()
    for p, start in starts.items():
        i, n = index[names[p]]
        level = layer_penalty(i, n, top, 0.0, 1.0)
        if level > 0:
            rolled_back.add(p)
        gradient = p.grad.flatten()[:1000].double()
        step = start - LR * decay[p] * start - LR * gradient / (gradient.abs() + 1e-8)  # Adam's first
        expected = step + level * (start - step)
        if not torch.allclose(p.flatten()[:1000].double(), expected, rtol=0, atol=1e-6):
            raise RuntimeError(f'{names[p]} does not follow the rule')
    anchored = {p for p in starts if optimizer.state[p].get('anchor') is not None}
    if anchored != rolled_back:
        raise RuntimeError(f'{len(anchored ^ rolled_back)} parameters with an anchor too many or too few')
    optimizer.step()
    if not all(p.isfinite().all() for p in starts):
        raise RuntimeError('not finite after two steps')
    return len(optimizer.param_groups)


def tiled(noise: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """As many of the numbers as another tensor has, over and over: drawing them all would take most of the time."""
    return noise.repeat(like.numel() // len(noise) + 1)[: like.numel()].view(like.shape)


def check_order(backbone: nn.Module, index: dict[str, tuple[int, int]], prefix: str) -> str:
    """What the comparison with a forward pass has given; the weights are lost."""
    backbone.zero_grad()
    backbone.eval()
    reasons = []
    for device in ('meta', 'cpu'):  # on the first, computation costs nothing; some operators are not there
        backbone.to_empty(device=device)
        for module in backbone.modules():
            if getattr(module, 'eps', None) == 0:  # as NAS-FCOS has it, and torch does not any more
                module.eps = 1e-5
        for inputs in possible_inputs(backbone, device):
            try:
                executed = execution_order(backbone, *inputs)
            except Exception as error:
                reasons.append(shortened(error))
                continue
            violations = order_violations(backbone, index, executed, prefix)
            return f'VIOLATED: {violations[0]}' if violations else f'{len(executed)} parameters in order'
    return f'no forward pass: {reasons[0]}'


def possible_inputs(module: nn.Module, device: str) -> Iterator[tuple]:
    """What a backbone may take: images of the size it asks for; for some of self-supervised learning a mask as well."""
    channels = next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 3)
    channels = 3 if channels == 12 else channels  # of every second pixel, as a Focus layer cuts images
    asked = [size for m in module.modules() for size in (getattr(m, 'img_size', None), getattr(m, 'input_size', None))]
    sizes = [(s, s) if isinstance(s, int) else tuple(s)[-2:] for s in asked if s is not None][:1]
    for height, width in [*sizes, *((s, s) for s in SIZES)]:
        images = torch.rand(1, channels, height, width, device=device)
        patches = torch.zeros(1, (height // 16) * (width // 16), device=device)
        sparse = sys.modules.get('mmpretrain.models.utils.sparse_modules')
        if sparse is not None:  # of SparK's convolutions, which ask it what is not masked
            sparse.SparseHelper._cur_active = torch.ones(1, 1, height // 32, width // 32, device=device)
        yield from ((images,), (images, None), (images, patches.bool()), (images, patches))
        yield images, torch.zeros(1, height // 4, width // 4, device=device)
    yield ()  # SAN's encoder of class names


def results(path: Path) -> list[dict]:
    """The rows that are done; a line cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def prepare() -> None:
    """Quiet, one thread for each of the processes, and the process group that SyncBN asks for."""
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    logging.disable(logging.ERROR)
    for stream in (1, 2):  # models print when they are built, gloo when it starts
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)


def write(rows: list[dict], counts: Counter, unread: Counter, out: Path, command: str) -> None:
    """``coverage.csv`` with every distinct model, and ``coverage.md`` with a line for each family."""
    for row in rows:
        row['configs'] = counts[row['key']]
    rows = sorted(rows, key=lambda row: (LIBRARIES.index(row['library']), row['model'], row['backbone'], row['config']))
    out.mkdir(parents=True, exist_ok=True)
    with open(out / 'coverage.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)
    ok = [row for row in rows if row['result'] == 'ok']
    failed = [row for row in rows if row['result'].startswith('FAILED')]
    rest = [row for row in rows if row not in ok and row not in failed]
    checked = [row for row in ok if row['order'] and 'no forward pass' not in row['order']]
    classes = {name for row in checked for name in row['backbone'].split(' + ')}
    lines = [
        '# Every stock config',
        '',
        'Does rollback work with your model? Every config of mmdet, mmseg and mmpretrain was built, and one step of it '
        'was compared with the rule. Search this page for your model or backbone.',
        '',
        f'Written by `{command}`; every distinct model is a row of [coverage.csv](coverage.csv). With '
        + ', '.join(f'{name} {importlib.import_module(name).__version__}' for name in (*LIBRARIES, 'torch'))
        + ', on CPU.',
        '',
        f'- {sum(counts.values()) + sum(unread.values())} config files, {sum(counts.values())} of them with a model, '
        f'{len(rows)} distinct ones (model and optimizer)',
        f'- **{len(failed)} failures**; {len(ok)} built, stepped and followed the rule; {len(rest)} not built, see why',
        f'- order of execution: 0 violations in {len(checked)} models with {len(classes)} classes of backbones'
        if not any('order' in row['result'] for row in failed)
        else '- order of execution: VIOLATED, see below',
        '',
    ]
    lines += table(
        '## Failures', ('library', 'config', 'result'), [(r['library'], r['config'], r['result']) for r in failed]
    )
    families: dict[tuple, list[dict]] = {}
    for row in ok:
        families.setdefault((row['library'], row['model'], row['backbone']), []).append(row)
    lines += table(
        '## What works',
        ('library', 'model', 'backbone', 'configs', 'M parameters', 'layers', 'groups'),
        [
            (*key, sum(counts[row['key']] for row in members), *(spread(members, column) for column in COLUMNS[3:6]))
            for key, members in families.items()
        ],
    )
    lines += table('## Cannot be built here', ('configs', 'model', 'reason'), grouped(rest, counts))
    lines += table('## Config files without a model', ('files', 'reason'), [(n, r) for r, n in unread.most_common()])
    unordered = [row for row in ok if row not in checked]
    lines += table(
        '## Built and stepped, but not run forward',
        ('models', 'backbone', 'reason'),
        [(n, *key) for key, n in Counter((r['backbone'], r['order'].split(': ', 1)[-1]) for r in unordered).items()],
    )
    lines += several_networks(ok, counts)
    (out / 'coverage.md').write_text('\n'.join(lines))


def several_networks(rows: list[dict], counts: Counter) -> list[str]:
    """Lines of the section with every kind of model that has more than one network."""
    kinds: dict[tuple, list[dict]] = {}
    for row in rows:
        if len(row.get('networks', ())) > 1:
            kinds.setdefault((row['library'], row['model'], repr(row['networks'])), []).append(row)
    cells = []
    for (library, model, _), members in kinds.items():
        start = library, model, sum(counts[row['key']] for row in members), members[0]['config']
        for network in members[0]['networks']:
            cells.append((*start, *network))
            start = '', '', '', ''
    lines = table(
        '## Models with several networks',
        ('library', 'model', 'configs', 'e.g.', 'network', 'class', 'tensors', 'layers', 'first level', 'last level'),
        cells,
    )
    text = (
        f'Each is indexed from its own input, here with `max_level={LEVEL}` and `min_level=0`. In brackets: a module '
        'that the model keeps apart from its parameters, so that no optimizer sees it. What cannot be built here is '
        'missing.'
    )
    return [*lines[:2], text, '', *lines[2:]] if lines else []


def grouped(rows: list[dict], counts: Counter) -> list[tuple]:
    total: Counter = Counter()
    for row in rows:
        total[row['model'], row['result']] += counts[row['key']]
    return [(n, model, reason.removeprefix('not built: ')) for (model, reason), n in total.items()]


def spread(rows: list[dict], column: str) -> str:
    values = sorted(row[column] for row in rows)
    ends = [f'{value / 1e6:.1f}' if column == 'parameters' else str(value) for value in (values[0], values[-1])]
    return '-'.join(dict.fromkeys(ends))


def table(title: str, header: tuple, rows: list[tuple]) -> list[str]:
    """Lines of a section with a table; none without rows."""
    if not rows:
        return []
    cells = [' | '.join(str(cell).replace('|', '/').replace('__', r'\_\_') for cell in row) for row in (header, *rows)]
    return [title, '', f'| {cells[0]} |', f'|{"---|" * len(header)}', *(f'| {line} |' for line in cells[1:]), '']


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--match', default='', help='only configs whose path has this in it')
    parser.add_argument('--work-dir', default='work_dirs/coverage', help='where rows are kept that are done')
    parser.add_argument('--out', default='docs/en', help='folder for coverage.md and coverage.csv')
    parser.add_argument('--networks', action='store_true', help='only write networks.md, which lists them')
    parser.add_argument('--processes', type=int, default=2)
    args = parser.parse_args()
    if args.processes < 1:
        parser.error(f'--processes {args.processes}: give 1 or more')
    for flag, folder in (('--work-dir', args.work_dir), ('--out', args.out)):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f'{flag} {folder!r} cannot be made ({error}); give another directory')
    work_dir = Path(args.work_dir)

    paths = {str(path): library for library in LIBRARIES for path in stock_configs(library) if args.match in str(path)}
    if not paths:
        raise SystemExit(f'--match {args.match!r}: no stock config has this in its path; give a part of one, e.g. swin')
    os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1')  # or each tokenizer is asked for several times
    # a fork of a process that has threads may hang
    processes = get_context('spawn')
    with processes.Pool(args.processes, prepare) as pool:
        found = list(track(pool.imap_unordered(read, paths, 16), 'Reading configs', total=len(paths)))
    counts, first, unread = Counter(), {}, Counter()
    for path, key, problem in sorted(found):
        if problem:
            unread[problem.replace(path, path.split('/configs/')[-1])] += 1
        else:
            counts[key] += 1
            first.setdefault(key, path)
    done = work_dir / ('networks.jsonl' if args.networks else 'rows.jsonl')
    tasks = [(path, key, paths[path], args.networks) for key, path in first.items()]
    known = {row['key'] for row in results(done)}
    todo = [task for task in tasks if task[1] not in known]
    # a fresh process now and then: some libraries keep what they have built
    with processes.Pool(args.processes, prepare, maxtasksperchild=100) as pool, open(done, 'a') as file:
        for row in track(pool.imap_unordered(examine, todo), 'Models', total=len(todo)):
            file.write(json.dumps(row) + '\n')
            file.flush()
    rows = [row for row in {row['key']: row for row in results(done)}.values() if row['key'] in first]
    if args.networks:
        Path(args.out, 'networks.md').write_text('\n'.join(several_networks(rows, counts)))
        return
    write(rows, counts, unread, Path(args.out), f'python tools/analysis_tools/{Path(__file__).name}')
    failed = [row for row in rows if row['result'].startswith('FAILED')]
    print(f'{len(rows)} distinct models, {len(failed)} failures; see {args.out}/coverage.md')
    if failed:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
