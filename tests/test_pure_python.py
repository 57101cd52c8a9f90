"""Configs of mmengine's pure-Python style, with classes as types, in every tool."""

import inspect
import json
import runpy

import pytest
import torch
from doc_helpers import blocks, section
from mmengine import registry
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.model import PretrainedInit
from mmengine.registry import DefaultScope
from mmpretrain.datasets import CIFAR10
from run_helpers import HOSTS, ROOT, config, scenes
from torch import nn

from lckd_mm import cli
from lckd_mm.cli.launch import replace_sync_bn
from lckd_mm.cli.start import check_pretrained
from lckd_mm.config import check_data, has_teacher, is_online, student_config
from lckd_mm.distillation import Distiller, OnlineDistiller
from lckd_mm.hooks import DistillationHook, SafeCheckpointHook
from lckd_mm.hosts import build_model
from lckd_mm.registry import resolved

EXAMPLE = 'configs/digits/kd-pure-python_wrn16-4_wrn10-1_1xb30_digits300.py'
KINDS = [registry.MODELS, registry.DATASETS, registry.TRANSFORMS, registry.DATA_SAMPLERS, registry.LOOPS]
KINDS += [registry.OPTIM_WRAPPERS, registry.OPTIMIZERS, registry.PARAM_SCHEDULERS, registry.METRICS, registry.HOOKS]
KINDS += [registry.TASK_UTILS]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    yield
    DefaultScope._instance_dict.clear()


def forms(kind, name):
    """A class, its registered name, and its path, as a dumped config has it."""
    return [kind, name, f'{kind.__module__}.{kind.__name__}']


def pure_python(cfg, file):
    """Write a text config in the pure-Python style."""
    imports = {}

    def text(value):
        if isinstance(value, dict):
            return 'dict(' + ', '.join(f'{k}={typed(v) if k == "type" else text(v)}' for k, v in value.items()) + ')'
        if isinstance(value, (list, tuple)):
            return f'{type(value).__name__}([' + ', '.join(map(text, value)) + '])'
        return repr(value)

    def typed(name):
        kind = next(filter(inspect.isclass, (resolved(name, kinds, cfg.default_scope) for kinds in KINDS)), None)
        if kind is None:
            return repr(name)  # not of a registry, such as the kind of nms
        imports[kind.__name__] = f'from {kind.__module__} import {kind.__name__}'
        return kind.__name__

    lines = [f'{key} = {text(value)}' for key, value in cfg.to_dict().items()]
    file.write_text('\n'.join([*imports.values(), *lines]) + '\n')


def tool(name, argv):
    assert cli.run_tool(runpy.run_path(f'tools/{name}.py')['main'], list(map(str, argv))) == 0


def train(file, work_dir, *options, resume=()):
    argv = [str(file), '--work-dir', str(work_dir), *resume, '--cfg-options', *options]
    assert cli.run_tool(cli.train, argv) == 0


@pytest.mark.parametrize('host', HOSTS)
def test_the_pages_block_trains_as_its_text_does(host, scenes, tmp_path, monkeypatch):
    """Student and teacher in the pure-Python style, on each host: the same weights, connectors and optimizer."""
    monkeypatch.chdir(tmp_path)
    term = dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='stage4', connector=dict(type='lckd_mm.ConvBN'))
    distillation = dict(
        type='lckd_mm.Distiller',
        teacher=dict(model='my_teacher.py', checkpoint='teacher.pth'),
        taps='backbone',
        terms=dict(loss_fitnets=term),
    )
    for name, width in (('teacher', 8), ('student', 4)):
        cfg = config(host, scenes, tmp_path, HOSTS[host][0](width), iters=2)
        pure_python(cfg, tmp_path / f'my_{name}.py')
        model = build_model(cfg.model, host)
        if name == 'teacher':
            torch.save(dict(state_dict=model.state_dict()), 'teacher.pth')
    assert isinstance(Config.fromfile('my_student.py').model.backbone.type, type)
    cfg.model = dict(distillation, student=cfg.model)
    cfg.dump('text.py')
    (block,) = blocks(section((ROOT / 'docs/own-config.md').read_text(), 'Pure-Python configs'))
    (tmp_path / 'pure.py').write_text(block)
    saved = []
    for name in ('text', 'pure'):
        train(f'{name}.py', name, 'default_hooks.checkpoint.interval=2')
        saved.append(torch.load(f'{name}/iter_2.pth'))
    for key in ('state_dict', 'lckd_mm', 'optimizer'):
        torch.testing.assert_close(saved[1][key], saved[0][key], rtol=0, atol=0)
    assert saved[1]['state_dict'].keys() == model.state_dict().keys()


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """The example's options and its work_dir after two epochs, the second of them once more from the first's file."""
    folder = tmp_path_factory.mktemp('pure_python')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        model = Config.fromfile(EXAMPLE).model.teacher.model
        torch.manual_seed(0)
        torch.save(dict(state_dict=build_model(model, 'mmpretrain').state_dict()), folder / 'teacher.pth')
        options = [f'model.teacher.checkpoint={folder}/teacher.pth', 'train_dataloader.dataset.subset=60']
        short = [f'default_hooks.checkpoint.{key}' for key in ('interval=1', 'max_keep_ckpts=2')]
        short += [*options, 'train_cfg.val_interval=1', 'train_cfg.max_epochs=2']
        train(EXAMPLE, folder / 'run', *short)
        train(EXAMPLE, folder / 'resumed', *short, resume=['--resume', str(folder / 'run/epoch_1.pth')])
    return options, folder / 'run'


def test_the_example_resumes_to_the_bit_and_its_student_tests_alone(trained, tmp_path):
    options, run = trained
    whole, resumed = (torch.load(folder / 'epoch_2.pth') for folder in (run, run.with_name('resumed')))
    for key in ('state_dict', 'lckd_mm', 'optimizer'):
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0)
    logs = [file.read_text().splitlines() for file in run.glob('*/vis_data/scalars.json')]
    validated = [json.loads(line) for lines in logs for line in lines]
    (dumped,) = run.glob('*.py')
    for file in (EXAMPLE, dumped):
        argv = [file, run / 'epoch_2.pth', '--work-dir', tmp_path / 'test', '--out', tmp_path / 'x.json']
        assert cli.run_tool(cli.test, [*map(str, argv), '--cfg-options', *options]) == 0
        score = json.loads((tmp_path / 'x.json').read_text())['accuracy/top1']
        assert score in [entry.get('accuracy/top1') for entry in validated]


@pytest.mark.full
def test_every_other_tool_takes_the_example(trained, tmp_path, capsys):
    options, run = trained
    handed = ['--cfg-options', *options]
    argv = [EXAMPLE, run / 'epoch_2.pth', tmp_path / 'student.pt2', *handed]
    assert cli.run_tool(cli.export, list(map(str, argv))) == 0
    assert '16 x 16' in capsys.readouterr().out
    tool('analysis/list_taps', [EXAMPLE, '--teacher', '--filter', 'head', *handed])
    assert 'head.fc' in capsys.readouterr().out
    tool('analysis/complexity', [EXAMPLE, '--out', tmp_path / 'costs.json', *handed])
    assert set(json.loads((tmp_path / 'costs.json').read_text())) >= {'student', 'teacher'}
    tool('analysis/browse_dataset', [EXAMPLE, '--out', tmp_path / 'pictures', '--number', '1', *handed])
    left_out = ['--without', 'image', 'bound', 'metric', '--images', '4']
    tool('analysis/lipschitz_report', [EXAMPLE, run / 'epoch_2.pth', *left_out, *handed])
    tool('analysis/report', [run, '--out', tmp_path / 'report.html'])
    assert 'fitnets' in (tmp_path / 'report.html').read_text()
    margin = [
        f'model.terms.loss_fitnets.teacher_connector.{kind}' for kind in ('type=lckd_mm.MarginReLU', 'margin=data')
    ]
    argv = [EXAMPLE, tmp_path / 'fitted.pth', '--work-dir', tmp_path / 'fit', *handed, *margin]
    assert cli.run_tool(cli.fit, list(map(str, argv))) == 0


def test_a_missing_teacher_of_a_pure_python_config_is_found_before_the_data(capsys):
    assert cli.run_tool(cli.train, [EXAMPLE, '--cfg-options', 'model.teacher.checkpoint=nowhere.pth']) == 1
    assert "teacher: no checkpoint at 'nowhere.pth'" in capsys.readouterr().err


@pytest.mark.parametrize('kind', forms(Distiller, 'lckd_mm.Distiller'))
def test_hooks_are_added_once_whatever_their_type_is_written_as(kind):
    for own in forms(DistillationHook, 'lckd_mm.DistillationHook'):
        for saving in forms(CheckpointHook, 'CheckpointHook'):
            hooks = dict(checkpoint=dict(type=saving, interval=3))
            cfg = Config(dict(model=dict(type=kind, student={}), default_hooks=hooks, custom_hooks=[dict(type=own)]))
            cli.add_hooks(cfg)
            assert set(cfg.default_hooks) == {'checkpoint', 'resume', 'non_finite'}
            assert resolved(cfg.default_hooks.checkpoint.type, registry.HOOKS) is SafeCheckpointHook
            plain = student_config(cfg)
            assert not plain.default_hooks and not plain.custom_hooks


@pytest.mark.parametrize('write', range(3), ids=['class', 'name', 'path'])
def test_types_are_compared_by_what_they_resolve_to(write, tmp_path):
    class Own(Distiller):
        pass

    def form(kind, name):
        return forms(kind, name)[write]

    assert has_teacher(Config(dict(model=dict(type=form(Distiller, 'lckd_mm.Distiller')))))
    assert has_teacher(Config(dict(model=dict(type=Own))))
    assert is_online(Config(dict(model=dict(type=form(OnlineDistiller, 'lckd_mm.OnlineDistiller')))))
    # a data set that fetches its files needs none; one told not to fetch them does
    data = dict(type=form(CIFAR10, 'CIFAR10'), data_root=str(tmp_path / 'nowhere'))
    cfg = Config(dict(default_scope='mmpretrain', model={}, x=dict(dataset=data)))
    check_data(cfg, ('x',))
    cfg.x.dataset.download = False
    with pytest.raises(FileNotFoundError, match='CIFAR10'):
        check_data(cfg, ('x',))
    norms = dict(a=dict(type=form(nn.SyncBatchNorm, 'SyncBN')), b=[dict(type=form(nn.BatchNorm2d, 'BN'))])
    replace_sync_bn(norms)
    assert norms['a']['type'] == 'BN' and norms['b'][0]['type'] != 'SyncBN'
    net = nn.Module()
    net.init_cfg = dict(type=form(PretrainedInit, 'Pretrained'), checkpoint=str(tmp_path / 'nowhere.pth'))
    with pytest.raises(FileNotFoundError, match='nowhere'):
        check_pretrained(net)
