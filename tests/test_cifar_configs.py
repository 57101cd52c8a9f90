"""The CIFAR-100 configs on files in CIFAR-100's own format: every pair trains, with the losses of the formulas."""

import hashlib
import io
import math
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from run_helpers import ROOT, count, run

from lckd_mm.config import check_data
from lckd_mm.hosts import build_model

CONFIGS = ROOT / 'configs' / 'cifar100'
# Setting: teacher, student, batch size, alpha, factor on alpha after 60 % of the epochs, last learning rate (of 0.1).
SETTINGS = {
    'a': ('wrn28-4', 'wrn16-4', 128, 0.8, 0.25, 1 / 100),
    'b': ('wrn28-4', 'wrn28-2', 128, 0.2, None, 1 / 100),
    'c': ('wrn28-4', 'wrn16-2', 128, 0.25, None, 1 / 500),
    'd': ('wrn28-4', 'resnet56', 128, 1.0, 2.0, 1 / 500),
    'e': ('pyramidnet200-240', 'wrn28-4', 64, 4.0, None, 1 / 1000),
    'f': ('pyramidnet200-240', 'pyramidnet110-84', 64, 1.0, None, 1 / 500),
    'g': ('wrn28-4', 'mobilenetv1', 128, 1.0, None, 1 / 100),
}


# IE-KD's pair, with the loss that each method turns around.
IE_PAIR = 'resnet56_resnet20_1xb128_cifar100'
IE = {'ie': 'FTLoss', 'ie-at': 'ATLoss', 'ie-ofd': 'OFDLoss'}


def path_of(method, setting):
    teacher, student, batch, *_ = SETTINGS[setting]
    return CONFIGS / f'{method}_{teacher}_{student}_1xb{batch}_cifar100.py'


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, with which CIFAR's own files are full."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        short = len(text) < 256
        self.write(
            pickle.SHORT_BINSTRING + bytes([len(text)]) if short else pickle.BINSTRING + struct.pack('<i', len(text))
        )
        self.write(text)
        self.memoize(text)

    dispatch[bytes] = save_string


def dumps(entry):
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(entry)
    return buffer.getvalue()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A few images in the three pickles of CIFAR-100's archive; their folder and checksums."""
    root = tmp_path_factory.mktemp('cifar100')
    folder, rng = root / 'cifar-100-python', np.random.default_rng(0)
    folder.mkdir()
    for split, images in (('train', 8), ('test', 4)):
        entry = {
            b'filenames': [f'{split}_{i}.png'.encode() for i in range(images)],
            b'batch_label': split.encode(),
            b'fine_labels': [int(y) for y in rng.integers(100, size=images)],
            b'coarse_labels': [int(y) for y in rng.integers(20, size=images)],
            b'data': rng.integers(256, size=(images, 3072), dtype=np.uint8),
        }
        (folder / split).write_bytes(dumps(entry))
    names = {b'fine_label_names': [f'fine {i}'.encode() for i in range(100)], b'coarse_label_names': [b'coarse'] * 20}
    (folder / 'meta').write_bytes(dumps(names))
    return root, {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.fixture
def cifar100(files, monkeypatch):
    from mmpretrain.datasets import CIFAR100

    root, sums = files
    monkeypatch.setattr(CIFAR100, 'train_list', [['train', sums['train']]])
    monkeypatch.setattr(CIFAR100, 'test_list', [['test', sums['test']]])
    monkeypatch.setattr(CIFAR100, 'meta', {**CIFAR100.meta, 'md5': sums['meta']})
    return root


def shallow(model):
    """The same widths and taps, on as few layers as the architecture allows."""
    backbone = model.backbone
    if backbone.type == 'lckd_mm.WideResNet':
        backbone.depth = 10
    elif backbone.type == 'lckd_mm.PyramidNet':
        backbone.depth = 11 if backbone.get('bottleneck') else 8
    elif backbone.type == 'lckd_mm.CifarResNet':
        backbone.depth = 8


class Recorder(Hook):
    """Keeps what each loss was made of, iteration by iteration."""

    def before_train(self, runner):
        self.seen = []
        runner.model.observers.append(lambda *parts: self.seen.append(parts))


def margin(norm):
    """E[x | x < 0] of N(beta, gamma^2), channel by channel, as the papers write it."""
    out = []
    for gamma, beta in zip(norm.weight.tolist(), norm.bias.tolist()):
        s = abs(gamma)
        tail = 0.5 * (1 + math.erf(-beta / s / math.sqrt(2)))
        density = math.exp(-((beta / s) ** 2) / 2) / math.sqrt(2 * math.pi)
        out.append(beta - s * density / tail if tail > 1e-3 else -3 * s)
    return torch.tensor(out).view(1, -1, 1, 1)


def sigma(front, back):
    size = back.shape[2:]
    front = F.adaptive_avg_pool2d(front, size) if front.shape[2] > size[0] else front
    return torch.linalg.svdvals(front.flatten(2).double() @ back.flatten(2).double().mT / size.numel())[:, 0]


@pytest.mark.parametrize('setting', count(list(SETTINGS), list(SETTINGS)[::2]))
def test_two_steps_have_the_published_losses(setting, cifar100, tmp_path):
    cfg = Config.fromfile(path_of('lckd-kd', setting))
    for model in (cfg.model.student, cfg.model.teacher.model):
        shallow(model)
    init_default_scope('mmpretrain')
    torch.manual_seed(1)
    teacher = build_model(cfg.model.teacher.model, 'mmpretrain')
    for module in teacher.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.3)
            torch.nn.init.normal_(module.bias)
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
    cfg.model.teacher.checkpoint = str(tmp_path / 'teacher.pth')
    for loader in ('train_dataloader', 'val_dataloader'):
        cfg[loader].update(batch_size=4, num_workers=0, persistent_workers=False)
        cfg[loader].dataset.data_prefix = str(cifar100)
    cfg.train_cfg.max_epochs = 1
    cfg.work_dir, cfg.log_level = str(tmp_path / 'run'), 'WARNING'
    cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    recorder = Recorder()
    runner = run(cfg, recorder)
    assert len(recorder.seen) == 2
    alpha = SETTINGS[setting][3]
    trace = runner.model.teacher_taps.traces
    margins = {n: margin(teacher.get_submodule(trace[n].norm)) for n in ('stage1', 'stage2', 'stage3')}
    for s, t, connected, losses in recorder.seen:
        c = connected['loss_ofd']
        assert all(connected['loss_lipschitz'][n] is c[n] for n in c)  # shared, as in the authors' code
        ofd = lip = 0.0
        for i, name in enumerate(margins):
            target = torch.maximum(t[name], margins[name])
            where = (c[name] > target) | (target > 0)
            ofd = ofd + 2.0 ** -(2 - i) * ((c[name] - target) ** 2 * where).sum()
        for i, (a, b) in enumerate((('stage1', 'stage2'), ('stage2', 'stage3'))):
            lip = lip + 2.0 ** -(2 - i) * ((sigma(c[a], s[b]) - sigma(t[a], t[b])) ** 2).mean()
        torch.testing.assert_close(losses['loss_ofd'], ofd / (1000 * 4), rtol=1e-4, atol=0)
        torch.testing.assert_close(losses['loss_lipschitz'].double(), alpha * lip / 200, rtol=1e-4, atol=0)
        p, q = (z['logits'].div(4).log_softmax(1) for z in (t, s))
        torch.testing.assert_close(losses['loss_kd'], 16 * (p.exp() * (p - q)).sum(1).mean(), rtol=1e-4, atol=1e-7)
    assert 'loss_task' in recorder.seen[0][3]


@pytest.mark.parametrize('setting', SETTINGS)
def test_the_recipe_is_the_papers(setting):
    _, student, batch, alpha, factor, last = SETTINGS[setting]
    cfg = Config.fromfile(path_of('lckd', setting))
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.train_cfg.max_epochs == 200
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ('SGD', 0.1, 0.9, 5e-4)
    assert optimizer.nesterov
    assert math.prod(s.gamma ** len(s.milestones) for s in cfg.param_scheduler) == pytest.approx(last)
    assert cfg.model.terms.loss_ofd.weight == 1e-3
    assert cfg.model.terms.loss_lipschitz.weight == pytest.approx(alpha / 200)
    assert cfg.model.teacher.bn == 'batch'
    schedules = [hook for hook in cfg.custom_hooks if hook.type == 'lckd_mm.LossWeightHook']
    assert [(h.milestones, h.gamma) for h in schedules] == ([([0.6], factor)] if factor else [])
    # Each method adds to the one before it, and all of them to the student alone.
    alone = Config.fromfile(CONFIGS / f'{student}_1xb{batch}_cifar100.py')
    terms = {m: Config.fromfile(path_of(m, setting)).model.terms for m in ('kd', 'ofd', 'lckd', 'lckd-kd')}
    assert cfg.model.student == alone.model
    assert {m: sorted(t) for m, t in terms.items()} == {
        'kd': ['loss_kd'],
        'ofd': ['loss_ofd'],
        'lckd': ['loss_lipschitz', 'loss_ofd'],
        'lckd-kd': ['loss_kd', 'loss_lipschitz', 'loss_ofd'],
    }
    assert (CONFIGS / f'{Path(cfg.model.teacher.checkpoint).parent.name}.py').is_file()


@pytest.mark.parametrize('method', count(list(IE), ['ie']))
def test_two_steps_of_inheritance_and_exploration(method, cifar100, tmp_path):
    cfg = Config.fromfile(CONFIGS / f'{method}_{IE_PAIR}.py')
    assert [s.milestones for s in cfg.param_scheduler] == [[80, 120]] and cfg.train_cfg.max_epochs == 160
    for model in (cfg.model.student, cfg.model.teacher.model):
        shallow(model)
    init_default_scope('mmpretrain')
    teacher = build_model(cfg.model.teacher.model, 'mmpretrain')
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
    cfg.model.teacher.checkpoint = str(tmp_path / 'teacher.pth')
    for loader in ('train_dataloader', 'val_dataloader'):
        cfg[loader].update(batch_size=4, num_workers=0, persistent_workers=False)
        cfg[loader].dataset.data_prefix = str(cifar100)
    if method == 'ie':
        assert cfg.model.terms.loss_inherit.teacher_connector.batches == 30 * math.ceil(50000 / 128)
        cfg.model.terms.loss_inherit.teacher_connector.batches = 2
    cfg.train_cfg.max_epochs = 1
    cfg.work_dir, cfg.log_level = str(tmp_path / 'run'), 'WARNING'
    cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    recorder = Recorder()
    runner = run(cfg, recorder)
    explore = runner.model.terms['loss_explore']
    assert type(explore.loss.wrapped).__name__ == IE[method]
    assert len(recorder.seen) == 2
    for *_, losses in recorder.seen:
        assert losses['loss_inherit'] > 0 > losses['loss_explore'] >= -explore.weight * 3000
        assert all(torch.isfinite(value) for value in losses.values())


ONLINE = [f'online-{method}_resnet32_resnet32_1xb128_cifar100.py' for method in ('kd', 'afd')]


@pytest.mark.parametrize('name', ONLINE)
def test_nets_that_learn_together_take_two_steps(name, cifar100, tmp_path):
    cfg = Config.fromfile(CONFIGS / name)
    for net in cfg.model.nets:
        shallow(net)
    for loader in ('train_dataloader', 'val_dataloader'):
        cfg[loader].update(batch_size=4, num_workers=0, persistent_workers=False)
        cfg[loader].dataset.data_prefix = str(cifar100)
    cfg.train_cfg.max_epochs = 1
    cfg.work_dir, cfg.log_level = str(tmp_path / 'run'), 'WARNING'
    cfg.default_hooks.distillation = dict(type='lckd_mm.OnlineHook')
    cfg.default_hooks.checkpoint.interval = 1
    runner = run(cfg)
    assert runner.iter == 2
    logged = runner.message_hub.log_scalars
    parts = ['loss_task', 'loss_kd'] + ['loss_adversarial'] * ('afd' in name)
    assert all(logged[f'train/net{k}.{part}'].current() > 0 for k in (0, 1) for part in parts)
    assert {'val/accuracy/top1', 'val/net1/accuracy/top1', 'val/ensemble/accuracy/top5'} <= set(logged)
    alone = Config.fromfile(CONFIGS / 'resnet32_1xb128_cifar100.py')
    shallow(alone.model)
    for file in ('epoch_1.pth', 'epoch_1.net1.pth'):
        state = torch.load(tmp_path / 'run' / file)['state_dict']
        build_model(alone.model, 'mmpretrain').load_state_dict(state)


PARTIAL = ('kd-pt', 'kd-topk', 'kd-sim', 'kd-rel')
PRUNED = ('pruned-channels_resnet32x4', 'pruned-channels-kd_resnet32x4_resnet32x4')


def two_steps(cfg, cifar100, tmp_path, *hooks):
    """Two steps and a validation of a config as it is, but for the batch's size, and nets as shallow as can be."""
    for model in [cfg.model.student, cfg.model.teacher.model] if 'student' in cfg.model else [cfg.model]:
        shallow(model)
    init_default_scope('mmpretrain')
    torch.manual_seed(1)
    whole = cfg.model.teacher.model if 'student' in cfg.model else cfg.model
    torch.save(dict(state_dict=build_model(whole, 'mmpretrain').state_dict()), tmp_path / 'teacher.pth')
    if 'student' in cfg.model:
        cfg.model.teacher.checkpoint = str(tmp_path / 'teacher.pth')
        cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    if cfg.get('load_from'):
        cfg.load_from = str(tmp_path / 'teacher.pth')
    for loader in ('train_dataloader', 'val_dataloader'):
        cfg[loader].update(batch_size=4, num_workers=0, persistent_workers=False)
        cfg[loader].dataset.data_prefix = str(cifar100)
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.work_dir, cfg.log_level = str(tmp_path / 'run'), 'WARNING'
    return run(cfg, *hooks)


@pytest.mark.parametrize('method', [*PARTIAL[1::2], *(pytest.param(m, marks=pytest.mark.full) for m in PARTIAL[::2])])
def test_two_steps_of_a_partial_teacher(method, cifar100, tmp_path):
    recorder = Recorder()
    runner = two_steps(Config.fromfile(path_of(method, 'c')), cifar100, tmp_path, recorder)
    assert len(recorder.seen) == 2
    loss = runner.model.terms['loss_kd'].loss
    assert loss.kind == method.removeprefix('kd-')
    for s, t, _, losses in recorder.seen:
        p, q = (z['logits'].div(4) for z in (t, s))
        if loss.kind == 'topk':
            kept = p.softmax(1).sort(1, descending=True).values[:, :25].sum(1)
            rho = torch.where(p >= p.topk(25, 1).values[:, -1:], p.softmax(1), ((1 - kept) / 75)[:, None])
            expected = 16 * (rho * (rho.log() - q.log_softmax(1))).sum(1).mean()
            torch.testing.assert_close(losses['loss_kd'], expected, rtol=1e-4, atol=1e-6)
        assert losses['loss_kd'] > 0
    assert math.isfinite(runner.message_hub.get_scalar('train/rescale_kd_mean').current())


def test_the_superclasses_are_cifars_own():
    from mmpretrain.datasets.categories import CIFAR100_CATEGORIES

    groups = Config.fromfile(path_of('kd-rel', 'c')).model.terms.loss_kd.loss.superclasses
    members = [[n for n, g in zip(CIFAR100_CATEGORIES, groups) if g == i] for i in range(20)]
    assert all(len(names) == 5 for names in members)
    assert members[0] == ['beaver', 'dolphin', 'otter', 'seal', 'whale']
    assert members[14] == ['baby', 'boy', 'girl', 'man', 'woman']
    assert members[19] == ['lawn_mower', 'rocket', 'streetcar', 'tank', 'tractor']


@pytest.mark.parametrize('name', PRUNED)
def test_two_steps_of_pruning(name, cifar100, tmp_path):
    cfg = Config.fromfile(CONFIGS / f'{name}_1xb128_cifar100.py')
    hook = cfg.custom_hooks[0]
    assert (hook.kind, hook.sparsity) == ('structured', 0.45)
    assert cfg.load_from.startswith('work_dirs/resnet32x4_1xb128_cifar100/')
    hook.end = 1
    runner = two_steps(cfg, cifar100, tmp_path)
    net = getattr(runner.model, 'student', runner.model)
    weight = net.backbone.layer3[0].conv1.weight
    assert weight.shape == (256, 128, 3, 3)
    assert int((weight.flatten(1).abs().sum(1) == 0).sum()) == int(0.45 * 256)
    assert not net.backbone.layer3[0].bn1.bias[weight.flatten(1).abs().sum(1) == 0].any()
    if name.startswith('pruned-channels-kd'):
        assert 'val/class_bias/cev' in runner.message_hub.log_scalars


def test_every_setting_has_all_its_configs():
    expected = {path_of(method, s).name for method in ('kd', 'ofd', 'lckd', 'lckd-kd') for s in SETTINGS}
    for teacher, student, batch, *_ in SETTINGS.values():
        expected |= {f'{student}_1xb{batch}_cifar100.py', f'{teacher}_1xb{batch}_cifar100.py'}
    expected |= {'resnet20_1xb128_cifar100.py', *(f'{method}_{IE_PAIR}.py' for method in IE)}
    expected |= {'resnet32_1xb128_cifar100.py', *ONLINE}
    expected |= {path_of(method, 'c').name for method in PARTIAL}
    expected |= {f'{name}_1xb128_cifar100.py' for name in (*PRUNED, 'resnet32x4')}
    assert {p.name for p in CONFIGS.glob('*.py')} == expected


def test_missing_files_are_said_or_fetched():
    cfg = Config.fromfile(CONFIGS / 'wrn16-4_1xb128_cifar100.py')
    check_data(cfg, ('train_dataloader',))  # mmpretrain fetches CIFAR-100 by itself
    cfg.train_dataloader.dataset.download = False
    with pytest.raises(FileNotFoundError, match='data/cifar100'):
        check_data(cfg, ('train_dataloader',))
