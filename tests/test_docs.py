"""The documentation: what it names exists, and the site of it builds; its examples run in test_readme.py."""

import contextlib
import importlib.util
import inspect
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from doc_helpers import PAGES, section
from mmengine.config import Config
from run_helpers import ROOT

from lckd_mm import registry
from lckd_mm.distillation import Term
from lckd_mm.evaluation.detection import VOCMetric
from lckd_mm.heads.ssd_head import SSDHead
from lckd_mm.recipes import choose
from lckd_mm.reporting.seeds import bootstrap, spread

# ---- what it names

PATH = re.compile(r'(?<![\w./:-])((?:configs|docs|lckd_mm|tests|tools)/[\w./-]*\w)(?![\w*/…])')
LINK = re.compile(r'\]\(([^)\s#]+)(?:#[^)\s]*)?\)')
COMMAND = re.compile(r'(?:^|[\s`(])(?:python )?(tools/[\w/]+\.(?:py|sh)|-m lckd_mm\.\w+)((?:[^\n`]|\\\n)*)')


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_file_that_it_names_exists(page):
    text = page.read_text()
    links = [link for link in LINK.findall(text) if '://' not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = PATH.findall(text)
    assert [path for path in named if not (ROOT / path).exists() and not (page.parent / path).exists()] == []


def commands():
    """Tool to the flags that the pages give it."""
    found = {}
    for page in PAGES:
        for tool, rest in COMMAND.findall(page.read_text()):
            if tool.endswith('.py') and '__main__' not in (ROOT / tool).read_text():
                continue  # a config
            rest = rest.partition('#')[0].replace('\\\n', ' ')
            flags = re.findall(r'(?<!\S)\[?(--[a-z][\w-]*)', rest)
            found.setdefault(tool, set()).update(flags)
    return found


def help_of(tool):
    """What a tool's --help says, its subcommands' with it."""

    def said(*arguments):
        out = io.StringIO()
        argv, sys.argv = sys.argv, [tool, *arguments, '--help']
        sys.path.insert(0, str((ROOT / tool).parent))  # as Python does for a script
        try:
            with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / tool), run_name='__main__')
        finally:
            sys.argv = argv
            sys.path.remove(str((ROOT / tool).parent))
        assert ended.value.code == 0
        return out.getvalue()

    text = said()
    subcommands = re.search(r'^\s+\{([\w,-]+)\}', text, re.M)
    return text + ''.join(said(name) for name in (subcommands[1].split(',') if subcommands else ()))


@pytest.mark.parametrize('tool', sorted(tool for tool in commands() if tool.endswith('.py')))
def test_each_flag_that_it_names_is_the_tools(tool):
    said = help_of(tool)
    assert [flag for flag in commands()[tool] if not re.search(rf'{flag}(?![\w-])', said)] == []


def test_each_goal_of_make_that_it_names_exists():
    goals = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M)
    named = {goal for page in PAGES for goal in re.findall(r'(?:^|`)make ([a-z][a-z-]*)', page.read_text(), re.M)}
    assert {'demo', 'docs', 'install', 'test-onedl'} <= named <= set(goals)


def test_each_module_that_it_runs_exists():
    modules = [tool.removeprefix('-m ') for tool in commands() if tool.startswith('-m ')]
    assert modules and all(importlib.util.find_spec(module) for module in modules)


def registered():
    """Registry to name to class of ours in it; other tests of this process may have added some of their own."""
    kinds = [name for name in vars(registry) if name.isupper() and not name.startswith('MMENGINE_')]
    for kind in kinds:
        getattr(registry, kind).import_from_location()
    found = {kind: getattr(registry, kind).module_dict for kind in kinds}
    return {k: {n: o for n, o in of.items() if o.__module__.startswith('lckd_mm.')} for k, of in found.items()}


def test_each_name_of_this_package_exists():
    names = set().union(*registered().values())
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r'(?<![\w.])lckd_mm\.([A-Z]\w+)', text):
            assert name in names or importlib.util.find_spec(f'lckd_mm.{name}'), f'{page.name}: {name}'
    methods = (ROOT / 'docs/methods.md').read_text()
    hooks = (ROOT / 'docs/own-config.md').read_text()
    losses = {name for name in registered()['MODELS'] if name.endswith('Loss')}
    # Parts of others: they stand in the reference.
    parts = {'LSGANLoss', 'ReconstructionLoss'}
    assert [name for name in sorted(losses - parts) if f'`lckd_mm.{name}`' not in methods] == []
    assert [name for name in sorted(registered()['HOOKS']) if f'`lckd_mm.{name}`' not in hooks] == []


# ---- the reference

#: What a term fills in.
CHANNELS = dict(channels=[8], student_channels=[8], in_channels=8, out_channels=8)
EXAMPLE = re.compile(r'^Example:\n((?: {4}.*\n?)+)', re.M)


def test_the_reference_has_what_the_registries_have():
    text = ''.join(page.read_text() for page in (ROOT / 'docs/reference').glob('*.md'))
    pages = {path.rpartition('.')[2] for path in re.findall(r'^::: ([\w.]+)$', text, re.M)}
    assert set().union(*registered().values()) - pages == set()


#: Registered as functions that import mmdet.
LAZY = {'SSDHead': SSDHead, 'VOCMetric': VOCMetric}


def test_each_class_has_an_example_that_its_constructor_takes():
    known = {name: found for of in registered().values() for name, found in of.items()} | {'Term': Term}
    for name in known:
        found = EXAMPLE.search(inspect.getdoc(LAZY.get(name, known[name])))
        if name in registered()['HOOKS'] and not found:
            continue
        assert found, name
        values = {'_base_': Config(dict(model=dict(bbox_head={}), test_evaluator={}))}
        exec(textwrap.dedent(found[1]), values)
        terms = {key: value for key, value in values.items() if key.startswith('loss_')}
        for term in terms.values():
            inspect.signature(Term).bind('loss', None, None, {}, **term)
        used = {name} if name == 'Term' else set()
        for config in configs({key: value for key, value in values.items() if not key.startswith('_')}):
            arguments = {key: value for key, value in config.items() if key not in ('type', 'constructor')}
            for key in ('type', 'constructor'):
                if config.get(key, '').startswith('lckd_mm.'):
                    kind = config[key].removeprefix('lckd_mm.')
                    used.add(kind)
                    if key == 'type':
                        takes = inspect.signature(known[kind])
                        takes.bind_partial(**arguments)
                        if known[kind].__module__.startswith(('lckd_mm.losses', 'lckd_mm.connectors')):
                            known[kind](**arguments, **{k: v for k, v in CHANNELS.items() if k in takes.parameters})
        assert name in used, name


def configs(value):
    """A value's dicts, nested ones with it."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from configs(part)


# ---- the site


def build(root, out):
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, 'NO_COLOR': '1'})
    return done.returncode, done.stdout + done.stderr


def test_the_site_builds_and_fetches_nothing(tmp_path):
    code, says = build(ROOT, tmp_path)
    assert code == 0, says
    html = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob('*.html')}
    assert {'index.html', 'extend.html', 'configs/digits.html', 'reference/losses.html'} <= set(html)
    for name, text in html.items():
        fetched = re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="?(?:https?:)?//', text)
        assert fetched == [] and 'class="arithmatex"' not in text, name
    assert re.findall(r'url\(["\']?(?:https?:)?//', ''.join(p.read_text() for p in tmp_path.rglob('*.css'))) == []
    # Opened as a file, a page cannot read the index of the search: it is a script, too.
    assert (tmp_path / 'search/search_index.js').is_file()
    # A README of configs/ is a page, its links lead to pages and to files that are carried along.
    assert 'href="../results.html#the-demo-in-figures"' in html['configs/demo.html']
    assert 'src="../methods.png"' in html['configs/digits.html'] and (tmp_path / 'methods.png').is_file()
    assert (tmp_path / 'repository/configs/lckd_fcn_voc.py').is_file()
    assert 'href="extend.html"' in html['index.html'] and 'href="configs/digits.html"' in html['tasks.html']
    # The docstrings' marks: formulas, names of other entries, arguments with their types.
    losses = html['reference/losses.html']
    assert ':math:' not in losses and ':class:' not in losses and '<math' in losses
    assert re.search(
        r'id="lckd_mm.losses.KDLoss".*?<b><code>tau</code></b>\s*\(<code><span title="float">', losses, re.S
    )
    assert 'href="connectors.html#lckd_mm.connectors.MarginReLU"' in losses
    assert 'href="reference/losses.html#lckd_mm.losses.KDLoss"' in html['methods.html']


def test_broken_links_and_forgotten_pages_fail(tmp_path):
    root = tmp_path / 'repository'
    ignore = shutil.ignore_patterns('__pycache__')
    for name in ('docs', 'configs'):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    for name in ('README.md', 'LICENSE'):
        shutil.copy(ROOT / name, root / name)
    # Without the search and the docstrings, which take most of the time.
    config = (ROOT / 'mkdocs.yml').read_text()
    (root / 'mkdocs.yml').write_text(re.sub(r'^plugins:\n(?:[ -].*\n)+', 'plugins: []\n', config, flags=re.M))
    for file, text in {
        'README.md': '\n[x](docs/nothing.md)\n',
        'configs/digits/README.md': '\n[x](../nothing.py)\n',
        'docs/method.md': '\n[x](results.md#no-such-heading)\n',
        'docs/forgotten.md': '# Forgotten\n',
    }.items():
        with open(root / file, 'a') as page:
            page.write(text)
    code, says = build(root, tmp_path / 'site')
    warnings = [line for line in says.splitlines() if line.startswith('WARNING')]
    assert code == 1
    for what in ('docs/nothing.md', '../nothing.py', 'no-such-heading', 'forgotten.md'):
        assert any(what in line for line in warnings) or what in says.partition('following pages exist')[2], what


# ---- the figures of the demo


def summaries():
    """The rows of `tools/demo.py --summary` for each demo's stored results."""
    tool = runpy.run_path(str(ROOT / 'tools' / 'demo.py'))
    for task in ('segmentation', 'detection'):
        table = tool['summary'](tool['TASKS'][task], sorted((ROOT / f'docs/data/demo-{task}').iterdir()))
        rows = [row for row in table.splitlines() if not row.startswith('|---')]
        assert len(rows) == 1 + len(tool['TITLES'])
        yield rows


def test_the_demos_tables_are_those_of_the_stored_results():
    text = (ROOT / 'docs/results.md').read_text()
    for rows in summaries():
        assert all(row in text for row in rows)


def test_the_table_of_the_readme_has_the_scores_and_gains_of_both_demos():
    text = (ROOT / 'README.md').read_text()
    for segmentation, detection in list(zip(*summaries()))[1:]:
        (title, *ours), (_, *theirs) = ([c.strip() for c in row.split('|')[1:5]] for row in (segmentation, detection))
        assert f'| {title} | {ours[0]} | {ours[2]} | {theirs[0]} | {theirs[2]} |' in text


def test_the_table_of_the_digits_weights_has_the_stored_runs():
    table = section((ROOT / 'configs/digits/README.md').read_text(), 'Digits').split('**AT, AB and RKD**')[1]
    runs = json.loads((ROOT / 'docs/data/digits-weights-seeds0-4.json').read_text())
    scores = {name: torch.tensor([run['score'] for run in of['runs'].values()]) for name, of in runs.items()}
    rows = [f'{of.mean():.2f} ± {of.std():.2f}' for of in scores.values()]
    assert re.findall(r'^\| [^|]+ \| (\d+\.\d\d ± \d+\.\d\d) \|', table, re.M)[: len(rows)] == rows
    for name in ('kd', 'at', 'ie-at', 'ab', 'rkd'):
        gains = scores[name] - scores['alone']
        assert f'| {gains.mean():+.2f} |' in table and f'| {(gains > 0).sum()} of 5 |' in table


@pytest.mark.parametrize(
    'record',
    [
        'london-detection-seeds100-102',
        'london-segmentation-seeds100-102',
        'london-kd-segmentation-seeds100-102',
        'start-detection-seed100',
        'start-segmentation-seed100',
        'start-kd-detection-seed100',
    ],
)
def test_the_tables_of_a_choice_have_the_stored_runs(record):
    text = (ROOT / 'docs/studies.md').read_text()
    runs = json.loads((ROOT / f'docs/data/{record}.json').read_text())
    scores = [run['score'] for name, of in runs.items() if name != 'teacher' for run in of['runs'].values()]
    assert scores and all(f'{score:.2f}' in text for score in scores)


def test_the_table_of_lengths_has_the_stored_runs():
    table = section((ROOT / 'docs/studies.md').read_text(), 'Lengths, batches and learning rates')
    for run in json.loads((ROOT / 'docs/data/lengths-seed100.json').read_text()):
        size = f'{run["batch"]} × {run["steps"]} | {run.get("crop", "")} | {run["lr"]} | {run["score"]:.2f} |'
        assert f'| {run["net"]}, {run["method"]} | {size}' in table, run


def test_the_table_of_regions_and_queries_has_the_stored_runs():
    table = section((ROOT / 'docs/studies.md').read_text(), 'Regions and queries: digit scenes')
    for run in json.loads((ROOT / 'docs/data/scenes-families-tries-seed100.json').read_text()):
        mask = f'{run["mask"]:.1f}' if 'mask' in run else ''
        result = f'{run["method"]} | {run["box"]:.1f} | {mask} | {run["cpu"]} |'
        assert f'| {run["net"]} | {run["steps"]:,} | {run["lr"]} | {result}' in table, run


def test_the_table_of_the_nuclei_has_the_stored_runs():
    table = section((ROOT / 'docs/studies.md').read_text(), 'Nuclei: what the benchmark is made of')
    for run in json.loads((ROOT / 'docs/data/nuclei-tries-seed100.json').read_text()):
        scores = '; '.join(f'{net}: {score:.2f}' for net, score in run['scores'].items())
        who = f'| {run["teacher"]} | {run["student"]} | {run["border"]} | {run["images"]} | {run["seed"]}'
        assert f'{who} | {scores} |' in table


@pytest.mark.parametrize(
    ('study', 'record', 'options'),
    [
        ('weights_bccd', 'bccd-weights-seeds100-102', ()),
        ('bccd_mobilenetv2', 'bccd-mobilenetv2-weights-seeds100-102', ()),
        ('bccd_mobilenetv2', 'bccd-mobilenetv2-test-seeds0-4', ('--test',)),
        ('bccd', 'bccd-test-seeds0-4', ('--test',)),
        ('weights_bccd', 'bccd-groupnorm-weights-seeds100-102', ()),
        ('bccd', 'bccd-groupnorm-lengths-seeds100-102', ()),
        ('bccd', 'bccd-groupnorm-test-seeds0-4', ('--test',)),
        ('bccd_width4', 'bccd-width4-seeds100-101', ()),
        ('bccd_few', 'bccd-few-seed100', ()),
        ('bccd_few', 'bccd-few-test-seeds0-4', ('--test',)),
        ('nuclei_few', 'nuclei-few-seeds100-101', ()),
        ('nuclei_few', 'nuclei-few-test-seeds0-4', ('--test',)),
    ],
)
def test_the_table_of_a_study_is_that_of_its_stored_runs(study, record, options, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    tool = runpy.run_path(str(ROOT / 'tools/bench/study.py'))
    tool['main']([f'tools/bench/studies/{study}.py', '--record', f'docs/data/{record}.json', *options])
    rows = capsys.readouterr().out.splitlines()
    text = (ROOT / 'docs/studies.md').read_text()
    assert len(rows) > 3 and all(row in text for row in rows)


def test_the_table_of_the_heads_statistics_has_the_stored_scores():
    text = (ROOT / 'docs/studies.md').read_text()
    scores = json.loads((ROOT / 'docs/data/bccd-head-statistics-val-seeds0-4.json').read_text())
    for net, statistics in (('alone', 'running'), ('alone', 'batch'), ('kd', 'running'), ('kd', 'batch')):
        assert ' | '.join(f'{scores[f"{net} {statistics} {seed}"]:.2f}' for seed in range(5)) in text


def test_what_is_said_of_kd_beside_the_table_of_bccd_follows_from_its_runs():
    text = section((ROOT / 'docs/studies.md').read_text(), 'BCCD: a student that reaches its teacher')
    runs = json.loads((ROOT / 'docs/data/bccd-groupnorm-test-seeds0-4.json').read_text())
    scores = {name: np.array([of['runs'][str(seed)]['test'] for seed in range(5)]) for name, of in runs.items()}
    gains = scores['kd-longer'] - scores['alone']
    low, high = bootstrap(gains.tolist())
    said = f'{gains.mean():.2f} (interval {low:+.2f} to {high:+.2f}, {(gains > 0).sum()} of 5 seeds)'
    assert f'KD gains {said}' in ' '.join(text.split())
    assert f'alone is {(scores["teacher"] - scores["alone"]).mean():.2f} below its teacher' in ' '.join(text.split())
    tries = json.loads((ROOT / 'docs/data/bccd-width4-800-seed100.json').read_text())
    assert ', '.join(f'{name} {score:.2f}' for name, score in tries.items()) in text


def test_what_is_said_of_images_without_labels_follows_from_the_runs():
    text = ' '.join(
        section((ROOT / 'docs/studies.md').read_text(), 'Nuclei: ten labelled images, and the others without').split()
    )
    runs = json.loads((ROOT / 'docs/data/nuclei-few-test-seeds0-4.json').read_text())
    scores = {name: np.array([of['runs'][str(seed)]['test'] for seed in range(5)]) for name, of in runs.items()}
    behind = {name: (scores['teacher'] - of).mean() for name, of in scores.items()}
    assert f'it is {behind["unlabelled-longer"]:.2f} below its teacher' in text
    assert f'alone of 7,500 steps is {behind["longer-as-long"]:.2f} below it' in text
    for taught, alone in (('unlabelled-0.9', 'as-long'), ('unlabelled-longer', 'longer-as-long')):
        gains = scores[taught] - scores[alone]
        low, high = bootstrap(gains.tolist())
        assert f'{gains.mean():+.2f} (interval {low:+.2f} to {high:+.2f}, {(gains > 0).sum()} of 5 seeds)' in text


def test_what_is_said_of_equal_time_on_bccd_follows_from_the_runs():
    text = ' '.join(section((ROOT / 'docs/studies.md').read_text(), 'BCCD: forty labelled images').split())
    runs = json.loads((ROOT / 'docs/data/bccd-few-test-seeds0-4.json').read_text())
    scores = {name: np.array([of['runs'][str(seed)]['test'] for seed in range(5)]) for name, of in runs.items()}
    gains = scores['kd-unlabelled'] - scores['as-long']
    low, high = bootstrap(gains.tolist())
    assert f'in equal time the gain is {gains.mean():.2f} (interval {low:+.2f} to {high:+.2f}, 5 of 5)' in text
    assert (gains > 0).all() and f'does not get better ({scores["as-long"].mean():.2f})' in text


def test_the_first_table_of_the_readme_has_the_stored_scores():
    text = (ROOT / 'README.md').read_text()
    for record, alone, taught in (
        ('nuclei-few-test-seeds0-4', 'longer-as-long', 'unlabelled-longer'),
        ('bccd-few-test-seeds0-4', 'alone', 'kd-unlabelled'),
    ):
        runs = json.loads((ROOT / f'docs/data/{record}.json').read_text())
        scores = {
            name: [runs[name]['runs'][str(seed)]['test'] for seed in range(5)] for name in ('teacher', alone, taught)
        }
        gains = np.array(scores[taught]) - np.array(scores[alone])
        before, after = (spread(scores[name]) for name in (alone, taught))
        (row,) = (line for line in text.splitlines() if f'| {before} |' in line)
        assert f'| {spread(scores["teacher"])} |' in row
        assert row.endswith(f': {after} | {gains.mean():+.2f} ({(gains > 0).sum()} of 5) |')
    (p,) = re.findall(r'p = (0\.\d+) after Holm', text)
    # Of the cells, the last of these.
    page = (ROOT / 'docs/studies.md').read_text()
    assert re.search(rf'KD, half of it on unlabelled images \| {after} .*\| {p} \|', page)
    digits = (ROOT / 'configs/digits/README.md').read_text()
    for score in ('98.29 ± 0.10', '95.11 ± 0.99', '97.62 ± 0.41', '+2.51'):
        assert f'| {score} |' in digits and score in text


def test_the_table_of_the_recipes_has_what_they_take():
    table = section((ROOT / 'docs/results.md').read_text(), 'What the recipes take')
    rows = dict(re.findall(r'^\| ([a-z -]+) \|(.*)$', table, re.M))
    for family, share in choose._OFD.items():
        tau, weight, _ = choose._KD.get(family, (None,) * 3)
        assert f"| `'{share}'` |" in rows[family]
        if family == 'query detector':
            assert f'): weight {choose._KD_OF_QUERIES} |' in rows[family]
            continue
        tau, weight = (tau, weight) if tau else choose._KD_OF_REGIONS.values()
        weight = f"`'{weight}'`" if isinstance(weight, str) else f'weight {weight}'
        assert f' τ {tau:g}, {weight:s} |' in rows[family]
