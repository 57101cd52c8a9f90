"""Malformed configs and arguments on the command line: status 1 or 2, a sentence on stderr, no traceback."""

import contextlib
import copy
import importlib.util
import io
import json
import re
import subprocess
import sys

import pytest
import torch
from fuzz_helpers import CONV, PLAN, SIDE, VALUES, apply, config, forget, fuzz, misspelt, mutations, paths_of
from hypothesis import strategies as st
from run_helpers import ROOT, count

from lckd_mm import cli
from lckd_mm.hosts import build_model

pytestmark = pytest.mark.timeout(900)


def tool(path):
    spec = importlib.util.spec_from_file_location(path.replace('/', '_'), ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NET = dict(
    type='ImageClassifier',
    data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=10, mean=[120.0] * 3, std=[60.0] * 3),
    backbone=dict(type='lckd_mm.CifarResNet', depth=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')),
)


def loader(split):
    digits = dict(type='lckd_mm.Digits', split=split, size=SIDE, subset=4, pipeline=[dict(type='PackInputs')])
    digits['serialize_data'] = False
    return dict(batch_size=2, num_workers=0, dataset=digits, sampler=dict(type='DefaultSampler', shuffle=False))


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """A whole config that trains for an iteration, as plain data; its teacher's file beside it."""
    folder = tmp_path_factory.mktemp('cli')
    torch.manual_seed(0)
    torch.save(build_model(NET, 'mmpretrain').state_dict(), folder / 'teacher.pth')
    terms = dict(
        loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0), on='logits', weight=0.5),
        loss_lipschitz=dict(loss=dict(type='lckd_mm.LipschitzLoss'), on=['low', 'high'], connector=CONV),
    )
    taps = dict(low='backbone.layer1@preact', high='backbone.layer2@preact', logits='head.fc')
    model = config('mmpretrain', folder / 'teacher.pth', terms, **taps)
    model.update(type='lckd_mm.Distiller', student=copy.deepcopy(NET))
    model['teacher']['model'] = copy.deepcopy(NET)
    return dict(
        default_scope='mmpretrain',
        model=model,
        work_dir=str(folder / 'run'),
        load_from=None,
        train_dataloader=loader('train'),
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
        custom_hooks=[dict(type='lckd_mm.LossWeightHook', term='loss_kd', schedule='constant', factor=0.5)],
        default_hooks=dict(checkpoint=None),
        test_dataloader=loader('test'),
        test_evaluator=dict(type='Accuracy'),
        test_cfg={},
        log_level='CRITICAL',
        randomness=dict(seed=0),
    )


class Refused(ValueError):
    """What a tool that ended as it should has said; anything else is an AssertionError."""


def in_process(main, argv):
    forget()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.run_tool(main, argv)
        except SystemExit as error:  # argparse's
            status = error.code
    _judge(status, out.getvalue(), err.getvalue())


def _judge(status, out, err):
    assert 'Traceback' not in out + err, err
    if status == 0:
        return
    last = err.strip().splitlines()[-1] if err.strip() else ''
    assert status in (1, 2) and re.search(r'(^|: )error: .', last), f'status {status}: {err[-500:]!r}'
    if re.match(
        r'error: (AttributeError|IndexError|AssertionError|RuntimeError|OverflowError|UnboundLocalError)', last
    ):
        raise AssertionError(last)
    raise Refused(last)


# ---- config files

OURS = ('model', 'custom_hooks', 'load_from', 'default_scope', 'work_dir', 'test_dataloader')


def test_config_files(base, tmp_path):
    plain = [v for v in VALUES if not isinstance(v, (bytes, complex, tuple))]
    values = (*plain, 'mmseg', 'low', 'logits', ['low'], 'none.pth', '/dev/null/none', 'loss_lipschitz')
    paths = [p for p in paths_of(base, skip=('loss', 'pipeline')) if p[0] in OURS]
    paths = [p for p in paths if p[:2] != ('model', 'student') and p[:3] != ('model', 'teacher', 'model')]
    file = tmp_path / 'config.json'
    mains = (('train', cli.train), ('test', cli.test), ('list', tool('tools/analysis/list_taps.py').main))

    def run(case):
        which, mutated = case[0], apply(base, case[1])
        if mutated is None:
            return None
        file.write_text(json.dumps(mutated))
        extra = [base['model']['teacher']['checkpoint']] if which[0] == 'test' else []
        return lambda: in_process(which[1], [str(file), *extra])

    for which in mains:
        with contextlib.suppress(Refused):
            run((which, ()))()
    strategy = st.tuples(st.sampled_from(mains[:1] * 4 + mains), mutations(base, paths, values))
    fuzz('config files', strategy, run, lambda case: None)


# ---- arguments


def arguments(base, folder):
    """(tool, arguments) that are wrong, each in its own way."""
    file, other = str(folder / 'sound.json'), str(folder / 'plain.json')
    (folder / 'sound.json').write_text(json.dumps(base))
    plain = {key: value for key, value in base.items() if key != 'custom_hooks'} | dict(model=NET)
    (folder / 'plain.json').write_text(json.dumps(plain))
    (folder / 'broken.py').write_text('model = dict(\n')
    (folder / 'raises.py').write_text('1 / 0\n')
    (folder / 'list.json').write_text('[1, 2]')
    (folder / 'text.txt').write_text('model')
    (folder / 'base.py').write_text("_base_ = './nowhere.py'\n")
    (folder / 'broken.pth').write_bytes(b'zzz')
    teacher = base['model']['teacher']['checkpoint']
    broken = str(folder / 'broken.pth')
    configs = [
        '', 'zzz', 'zzz.py', str(folder), str(folder / 'broken.py'), str(folder / 'raises.py'),
        str(folder / 'list.json'),
        str(folder / 'text.txt'), str(folder / 'base.py'), broken, 'zzz::zzz.py', 'mmseg::zzz.py', '::', 'mmseg::',
    ]  # fmt: skip
    options = [
        'model.terms.loss_kd.weight=abc', 'model.terms.loss_kd.weight=-1', 'model.terms.loss_kd.weight=nan',
        'model.terms.loss_kd.on=zzz', 'model.terms.loss_kd=zzz', 'model.terms=zzz', 'model.terms.loss_zzz.weight=1',
        'model.teacher=zzz', 'model.teacher.checkpoint=zzz.pth', f'model.teacher.checkpoint={broken}',
        'model.teacher.bn=zzz', 'model.taps.low=zzz', 'model.taps=zzz', 'model=zzz', 'model.type=zzz',
        'custom_hooks.0.term=zzz', 'custom_hooks.7.term=zzz', 'custom_hooks.zzz=1', 'custom_hooks=zzz', 'zzz', '=',
        'default_scope=zzz', 'load_from=zzz.pth', f'load_from={broken}', 'model.dry_run_size=0', 'model.inherit=zzz',
        'train_dataloader.dataset.split=zzz', 'train_dataloader.dataset.subset=0', 'train_dataloader=zzz',
        'model.student=zzz', 'model.student.type=zzz', 'model.student.backbone.depth=9', 'model.zzz=1',
    ]  # fmt: skip
    cases = [(name, [c, *extra]) for c in configs for name, extra in (('train', []), ('test', [teacher]), ('list', []))]
    cases += [('train', [file, '--cfg-options', option]) for option in options]
    cases += [
        ('list', [file, '--cfg-options', option])
        for option in options
        if option.startswith(('model.student', 'model=', 'model.type'))
    ]
    cases += [
        ('train', []), ('train', [file, '--zzz']), ('train', [file, '--launcher', 'zzz']),
        ('train', [file, '--resume', 'zzz.pth']), ('train', [file, '--resume', broken]),
        ('train', [file, '--resume', teacher]), ('train', [file, '--resume', str(folder)]),
        ('train', [file, '--auto-scale-lr']), ('train', [file, '--work-dir', file]),
        ('train', [file, '--launcher', 'pytorch']), ('train', [file, '--launcher', 'slurm']),
        ('train', [file, '--launcher', 'mpi']), ('train', [file, '--local-rank', 'x']), ('train', [file,
        '--cfg-options']),
        ('test', []), ('test', [file]), ('test', [file, 'zzz.pth']), ('test', [file, broken]), ('test', [file,
        str(folder)]),
        ('test', [file, '']), ('test', [other, broken]), ('test', [file, teacher, '--out', str(folder / 'a/b/c.json')]),
        ('test', [file, teacher, '--cfg-options', 'test_evaluator=zzz']),
        ('test', [file, teacher, '--cfg-options', 'test_dataloader=None']),
        ('test', [file, teacher, '--cfg-options', 'model.student.head.num_classes=7']),
        ('list', []), ('list', [file, '--zzz']), ('list', [other, '--teacher']), ('list', [file, '--teacher',
        '--student']),
        ('list', [file, '--filter', 'zzz']), ('list', [file, '--size', 'x']), ('list', [file, '--size', '-5']),
        ('list', [file, '--size', '0']), ('list', [file, '--size', str(10**15)]), ('list', [file, '--backbone',
        '--size', '-1']),
        ('demo', ['--task', 'zzz']), ('demo', ['--seed', 'x']), ('demo', ['--only', 'zzz']), ('demo', ['zzz']),
        ('demo', ['--summary', '--work-dir', str(folder / 'none')]), ('demo', ['--summary', '--work-dir', file]),
        ('prepare', []), ('prepare', ['zzz']), ('prepare', ['digit-scenes', '--train', 'x']),
        ('prepare', ['digit-scenes', '--out', str(folder / 'd'), '--train', '-1']),
        ('prepare', ['digit-scenes', '--out', str(folder / 'd'), '--size', '3']),
        ('prepare', ['digit-scenes', '--out', str(folder / 'd'), '--seed', '-1']),
        ('prepare', ['digit-scenes', '--out', file]), ('prepare', ['digit-scenes', '--out', str(folder)]),
        ('prepare', ['digit-scenes', '--out', str(folder), '--force']), ('prepare', ['digit-scenes', '--out',
        '/dev/null/x']),
        ('prepare', ['digit-scenes', '--zzz']), ('prepare', ['sbd']), ('prepare', ['sbd', 'zzz']),
        ('prepare', ['sbd', 'zzz', 'zzz']), ('prepare', ['sbd', str(folder), str(folder)]), ('prepare', ['sbd', file,
        file]),
        ('prepare', ['sbd', '', '']),
    ]  # fmt: skip
    return cases


FILES = dict(
    train='tools/train.py', test='tools/test.py', list='tools/analysis/list_taps.py', demo='tools/demo.py',
    prepare='tools/prepare_data.py',
)  # fmt: skip


def test_arguments(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    modules = {name: tool(FILES[name]) for name in ('list', 'demo', 'prepare')}

    def prepare(argv):
        status = modules['prepare'].main(argv)
        if status:
            raise SystemExit(status)

    mains = dict(train=cli.train, test=cli.test, list=modules['list'].main, demo=modules['demo'].main, prepare=prepare)
    cases = arguments(base, tmp_path)
    assert len(cases) >= PLAN['arguments'][0]
    step = max(1, len(cases) // count(len(cases), PLAN['arguments'][1]))
    chosen, bad, sound = cases[::step], {}, []
    refused = 0
    for name, argv in chosen:
        try:
            in_process(mains[name], argv)
            sound.append((name, argv))
        except Refused:
            refused += 1
        except BaseException as error:
            bad[name, tuple(argv)] = f'{type(error).__name__}: {error}'
    print(f'arguments: {len(chosen)} malformed, {refused} refused')
    assert not bad, '\n'.join(f'{key}: {value}' for key, value in bad.items())
    assert not sound


# Each imports the hosts anew: one of the three that do is enough for the reduced suite.
@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.full] if n in ('test', 'list') else []) for n in FILES]
)
def test_as_a_process(name, base, tmp_path):
    """One wrong config or argument of each tool, and no option at all."""
    broken = copy.deepcopy(base)
    broken['model']['terms']['loss_kd']['on'] = misspelt('logits')
    broken['model']['student']['backbone']['depth'] = 9
    (tmp_path / 'config.json').write_text(json.dumps(broken))
    argv = dict(
        train=[str(tmp_path / 'config.json')], test=[str(tmp_path / 'config.json'), 'zzz.pth'],
        list=[str(tmp_path / 'config.json')], demo=['--summary', '--work-dir', str(tmp_path)],
        prepare=['sbd', str(tmp_path), 'zzz'],
    )[name]  # fmt: skip
    command = [sys.executable, '-W', 'ignore', str(ROOT / FILES[name]), *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    with pytest.raises(Refused):
        _judge(done.returncode, done.stdout, done.stderr)
