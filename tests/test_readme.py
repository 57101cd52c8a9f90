"""Who reads the page distils a config of their own by the block that stands there; and the pages' examples."""

import json
import re
import sys

import pytest
import torch
from doc_helpers import PAGES, blocks, call, history, section, write_own_files
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS as HOST_MODELS
from run_helpers import ROOT, scenes

from lckd_mm import cli
from lckd_mm.registry import MODELS

LINES = 19
HOST_NAMES = {'mmseg': 'mmsegmentation', 'mmdet': 'mmdetection', 'mmpretrain': 'mmpretrain'}
OWN_CONFIG = ROOT / 'docs/own-config.md'


def lines(block):
    return [line for line in block.splitlines() if line.strip()]


@pytest.fixture(scope='module')
def own_files(tmp_path_factory, scenes):
    made = {}

    def files(host):
        if host not in made:
            made[host] = tmp_path_factory.mktemp(host)
            write_own_files(made[host], host, scenes)
        return made[host]

    return files


@pytest.mark.parametrize('host', HOST_NAMES)
def test_one_block_distils_ones_own_config(host, own_files, monkeypatch):
    (block,) = blocks(section(OWN_CONFIG.read_text(), HOST_NAMES[host]))
    assert len(lines(block)) <= LINES
    folder = own_files(host)
    monkeypatch.chdir(folder)
    work_dir = folder / 'distilled'
    (folder / 'distilled.py').write_text(block)
    options = ['train_cfg.max_iters=3', 'train_cfg.val_interval=4', 'default_hooks.logger.interval=1']
    call('distilled.py', '--work-dir', work_dir, '--cfg-options', *options,
         'default_hooks.checkpoint.interval=3')  # fmt: skip
    logged = [entry for entry in history(work_dir) if 'loss' in entry]
    terms = re.findall(r'\b(loss_\w+)=dict\(\s*loss=', block)
    assert len(terms) == 2 and len(logged) == 3
    assert all(entry[name] > 0 for entry in logged for name in terms)
    # By the tool, and by the host's plain config, which knows nothing of this package.
    out = 'distilled.json'
    argv = ['distilled.py', str(work_dir / 'iter_3.pth'), '--work-dir', str(folder / 'test'), '--out', out]
    DefaultScope._instance_dict.clear()
    assert cli.run_tool(cli.test, [*argv, '--debug']) == 0
    plain = Config.fromfile('my_student.py')
    plain.work_dir = str(folder / 'plain')
    DefaultScope._instance_dict.clear()
    runner = Runner.from_cfg(plain)
    saved = torch.load(work_dir / 'iter_3.pth', weights_only=False)
    runner.model.load_state_dict(saved['state_dict'], strict=True)
    metrics = runner.test()
    assert json.loads((folder / out).read_text()) == pytest.approx(
        {k: float(v) for k, v in metrics.items()}, nan_ok=True
    )


def test_the_commands_of_the_page_name_its_file():
    text = OWN_CONFIG.read_text()
    commands, *_ = blocks(text, '')
    for tool in ('tools/train.py my_distillation.py', 'tools/test.py my_distillation.py', 'tools/analysis/report.py'):
        assert tool in commands
    assert '`my_distillation.py`' in text


# ---- the examples of the pages

#: Config of a page to the host of its my_student.py; the other files of the page lie beside it.
EXAMPLES = {
    'with_my_loss.py': ('extend.md', 'mmseg'),
    'with_my_connector.py': ('extend.md', 'mmdet'),
    'with_my_tap.py': ('extend.md', 'mmpretrain'),
    'cwd.py': ('from-mmrazor.md', 'mmseg'),
}


def files_of(page):
    """Name to text of the page's blocks that are whole files."""
    return {match[1]: block for block in blocks(page.read_text()) if (match := re.match(r'# (\w+\.py)\n', block))}


def test_every_block_that_is_a_config_is_run():
    found = {name: page.name for page in PAGES for name, text in files_of(page).items() if 'lckd_mm.Distiller' in text}
    assert found == {name: page for name, (page, _) in EXAMPLES.items()}


@pytest.fixture
def forgotten():
    """What an example registers is gone when it ends: other tests go through the registries."""
    yield
    for models in (MODELS, HOST_MODELS):
        for name, kind in list(models.module_dict.items()):
            if kind.__module__.startswith('my_'):
                del models.module_dict[name]
    for name in [name for name in sys.modules if name.startswith('my_')]:
        del sys.modules[name]


@pytest.mark.usefixtures('forgotten')
@pytest.mark.parametrize('name', [*list(EXAMPLES)[:3], pytest.param('cwd.py', marks=pytest.mark.full)])
def test_an_example_trains(name, own_files, monkeypatch):
    page, host = EXAMPLES[name]
    folder = own_files(host)
    texts = files_of(ROOT / 'docs' / page)
    for file, text in texts.items():
        (folder / file).write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=3', 'default_hooks.logger.interval=1']
    call(name, '--cfg-options', *options)
    logged = [entry for entry in history(folder / 'work_dirs' / name.removesuffix('.py')) if 'loss' in entry]
    terms = re.findall(r'\b(loss_\w+)=dict\(\s*loss=', texts[name])
    assert terms and len(logged) == 2
    assert all(entry[term] > 0 for entry in logged for term in terms)
