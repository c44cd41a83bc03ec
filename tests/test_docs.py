"""README and docs do what they say: every block of code in them is run as it stands, and the pages build."""

import ast
import doctest
import importlib
import os
import pkgutil
import re
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

import pytest
import rich
from conftest import CLASSIFICATION, ROOT, run, tool
from markdown_it import MarkdownIt
from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from sybil import Document, Example
from sybil.parsers.myst import CodeBlockParser, SkipParser

from olor_mm.cli.packaged import config_file
from olor_mm.optim.rules import RULES
from olor_mm.registry import IMPORTED_LATER

PAGES = [path.relative_to(ROOT) for path in [ROOT / 'README.md', *sorted((ROOT / 'docs/en').rglob('*.md'))]]
PAGES = [page for page in PAGES if '_build' not in page.parts]
RUN = ('python', 'bash')
SHOWN = ('text', '{toctree}', '{eval-rst}', '{literalinclude}')
FILE_NAME = re.compile(r'# ([\w./-]+\.py)\n')


def run_python(example: Example) -> None:
    """A block whose first line is a comment with the name of a file is that file; any other is run."""
    code = str(example.parsed)
    if named := FILE_NAME.match(code):
        Path(named[1]).write_text(code)
        return
    exec(compile('\n' * example.line + code, example.path, 'exec'), example.namespace)


def run_bash(example: Example) -> None:
    """Run a block; in a quick test its Python tools run in this process, and train and test on a few images."""
    lines = [str(example.parsed)]
    if example.namespace['quick']:
        lines = lines[0].replace('\\\n', ' ').splitlines()
    output = ''
    for line in lines:
        words = shlex.split(line, comments=True) if example.namespace['quick'] else []
        if words[:1] == ['python']:
            output += tool(*words[2 if words[1] == '-m' else 1 :], folder=Path.cwd()).stdout
        else:
            path = f'{ROOT}:{os.environ.get("PYTHONPATH", "")}'
            output += run('bash', '-euo', 'pipefail', '-c', line, folder=Path.cwd(), PYTHONPATH=path).stdout
    example.namespace['output'] = output


def innermost(dataset) -> list:
    """The data sets within wrappers."""
    inner = dataset.get('datasets') or [*filter(None, [dataset.get('dataset')])]
    return [found for part in inner for found in innermost(part)] or [dataset]


@pytest.fixture
def few_images(data, tmp_path_factory, monkeypatch):
    """Runs read four images of their data, and compare classifiers on a few."""
    photos = tmp_path_factory.mktemp('photos')
    for file in sorted((data / 'photos').glob('*.png'))[::20]:
        (photos / file.name).symlink_to(file)

    def from_cfg(cfg):
        for loader in filter(None, map(cfg.get, ('train_dataloader', 'val_dataloader', 'test_dataloader'))):
            loader.batch_size = 2
            for dataset in innermost(loader.dataset):
                dataset.indices = 4
        for hook in cfg.get('custom_hooks') or []:
            if 'images' in hook:
                hook.images = str(photos)
        return make(cfg)

    make = Runner.from_cfg
    monkeypatch.setattr(Runner, 'from_cfg', from_cfg)


@pytest.fixture
def downloaded(data, tmp_path, monkeypatch):
    """torchvision's file of ImageNet weights, where a download would leave it."""
    folder = tmp_path / 'torch_home/hub/checkpoints'
    folder.mkdir(parents=True)
    (folder / 'mobilenet_v2-b0353104.pth').symlink_to(data / 'weights/mobilenet_v2_torchvision.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))


@pytest.fixture
def own_registries() -> Iterator[None]:
    """What a page registers is gone after it."""
    kept = {id(registry): (registry, dict(registry)) for registry in (RULES, OPTIMIZERS.module_dict)}
    yield
    for registry, entries in kept.values():
        registry.clear()
        registry.update(entries)


def run_page(page: Path, folder: Path, quick: bool) -> None:
    """Run the blocks of a page in their order, in a folder that looks like the root of the repository."""
    for entry in ROOT.iterdir():
        if entry.name not in ('.git', '.cache', 'work_dirs'):
            (folder / entry.name).symlink_to(entry)
    parsers = [CodeBlockParser('python', run_python), CodeBlockParser('bash', run_bash), SkipParser()]
    document = Document.parse(str(ROOT / page), *parsers)
    made = (ROOT / '.venv/.ready').is_file()
    document.namespace.update(quick=quick, made=made, page=ROOT / page)
    rich.get_console().clear_live()  # where an inferencer of MMEngine failed in this process, its progress bar stays
    for example in document:
        try:
            example.evaluate()
        except SkipTest as skipped:
            is_tested = 'tools/check_install.sh runs these' in str(skipped)
            assert quick or not made or is_tested, f'{page}:{example.line} is never run'


def fences(page: Path) -> list:
    return [t for t in MarkdownIt().parse((ROOT / page).read_text()) if t.type in ('fence', 'code_block')]


WITH_BLOCKS = [page for page in PAGES if any(token.info.strip() in RUN for token in fences(page))]
SLOW = [page for page in WITH_BLOCKS if any(token.info.strip() == 'bash' for token in fences(page))]


@pytest.mark.parametrize('page', WITH_BLOCKS, ids=str)
def test_the_blocks_of_a_page_run(page, downloaded, tmp_path, monkeypatch, few_images, own_registries):
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path, quick=True)


@pytest.mark.slow
@pytest.mark.parametrize('page', SLOW, ids=str)
def test_the_blocks_of_a_page_run_as_a_user_runs_them(page, downloaded, tmp_path, monkeypatch, own_registries):
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path, quick=False)


@pytest.mark.parametrize('page', PAGES, ids=str)
def test_every_block_says_whether_it_is_run(page):
    for token in fences(page):
        where = f'{page}:{token.map[0] + 1}'
        assert token.type == 'fence', f'{where}: by indentation; fence it'
        assert token.info.split()[:1] and token.info.split()[0] in (*RUN, *SHOWN), f'{where}: {token.info!r}'
        if token.info.split()[0] == 'text':
            assert not re.match(r'\s*(python|pip|make|tools/|cd) ', token.content), (
                f'{where}: a command that is not run'
            )


@pytest.mark.parametrize('page', PAGES, ids=str)
def test_links_lead_to_files_that_exist(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r'\]\(([^)#:\s]+)(?:#[\w-]+)?\)', text):
        assert ((ROOT / page).parent / link).exists(), f'{page}: {link}'
    if page.name in ('coverage.md', 'class_heads.md'):  # they name configs of other packages
        return
    for path in re.findall(r'(?<!\w)(?:configs|tools|demo|examples|benchmarks)/[\w/.-]+\.(?:py|sh)', text):
        assert (ROOT / path).is_file(), f'{page}: {path}'


def test_every_fragment_for_other_ways_is_taken_as_the_docs_say(tmp_path, monkeypatch):
    page = ROOT / 'docs/en/baselines.md'
    [code] = [token.content for token in fences(page) if 'finetune_hooks' in token.content]
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    stock = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
    fragments = sorted((ROOT / 'configs/_base_/finetune').glob('*.py'))
    for fragment in fragments:
        assert f'| `{fragment.name}` |' in page.read_text()
        for base in (stock, CLASSIFICATION):
            config = tmp_path / 'config.py'
            config.write_text(code.replace('l2sp.py', fragment.name).replace(stock, base))
            cfg = Config.fromfile(config)
            assert cfg.optim_wrapper == cfg.finetune_optim_wrapper
            # a base with hooks and imports of its own keeps them
            assert cfg.custom_hooks == [
                *Config.fromfile(config_file(base)).get('custom_hooks', []), *cfg.finetune_hooks
            ]  # fmt: skip
    assert len(fragments) == 7


def sentences(file: Path) -> list[str]:
    """The strings in a source file, with '...' for what is put into them."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else '...' for part in node.values]
            found.append(''.join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_the_messages_of_trouble_shooting_are_those_of_the_source():
    quoted = re.findall(r'^### `(.*)`$', (ROOT / 'docs/en/troubleshooting.md').read_text(), re.M)
    known = [
        text for folder in ('olor_mm', 'tools') for file in (ROOT / folder).rglob('*.py') for text in sentences(file)
    ]
    for message in quoted:
        pattern = re.compile('.*'.join(re.escape(part) for part in message.split('...')))
        assert any(pattern.search(text) for text in known), message
    assert len(quoted) > 30


def test_figures_of_readme_and_guide_are_those_of_the_studies():
    pages = ('README', *(f'docs/en/{page}' for page in ('choosing_how_strong', 'evidence_tables', 'evidence_budget')))
    readme, guide, study, budgets = ((ROOT / f'{page}.md').read_text() for page in pages)
    added = (ROOT / 'docs/en/benchmarks/add_classes.md').read_text()
    quoted = re.findall(r'\d+\.\d ± \d+\.\d|[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]', readme + guide)
    assert len(quoted) > 20
    assert not [figure for figure in quoted if figure not in study]
    costs = readme.split('## What it keeps')[1].split('\n## ')[0]
    aps = re.findall(r'0\.\d{3}', costs)
    assert len(aps) == 7 and not [figure for figure in aps if figure not in added]
    tops = re.findall(r'\d\d\.\d(?!\d)', costs)
    assert len(tops) == 2 and not [figure for figure in tops if figure not in budgets]


@pytest.mark.parametrize('module', [m.name for m in pkgutil.walk_packages([str(ROOT / 'olor_mm')], 'olor_mm.')])
def test_the_examples_in_docstrings_run(module):
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert not failed


def test_the_figures_are_those_that_the_script_draws(tmp_path):
    tool('docs/draw_figures.py', '--out', tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    there = {path.name for path in (ROOT / 'docs/en/figures').iterdir()}
    assert set(drawn) == there - {'demo.png'} and len(drawn) == 3  # `make demo` draws that one


@pytest.fixture(scope='module')
def html(tmp_path_factory) -> Path:
    """The pages, built without a warning."""
    pytest.importorskip('sphinx')
    folder = tmp_path_factory.mktemp('html')
    options = ['--fail-on-warning', '--keep-going', '-q']
    tool('sphinx', *options, '-d', folder / 'doctrees', 'docs/en', folder / 'html')
    return folder / 'html'


def test_every_page_is_built_and_in_the_menu(html):
    menu = (html / 'index.html').read_text()
    for page in PAGES[1:]:
        built = page.relative_to('docs/en').with_suffix('.html')
        assert (html / built).is_file() and (f'href="{built}"' in menu or built.stem == 'index'), page


def test_every_public_name_is_in_the_reference(html):
    inventory = zlib.decompress((html / 'objects.inv').read_bytes().split(b'\n', 4)[4]).decode()
    found = {line.split()[0].rpartition('.')[2] for line in inventory.splitlines() if ' py:' in line}
    modules = [m.name for m in pkgutil.walk_packages([str(ROOT / 'olor_mm')], 'olor_mm.') if '.cli' not in m.name]
    names = {name for module in modules for name in getattr(importlib.import_module(module), '__all__', ())}
    assert len(names) > 60
    assert not (names | set(IMPORTED_LATER)) - found
