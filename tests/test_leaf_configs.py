"""Every pair of student and teacher trains, with all its terms, on files laid out as its data set's own; recipes."""

import hashlib
import math
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image
from run_helpers import ROOT, count, run, scalars
from test_configs import voc_tree

from lckd_mm.config import check_data, student_config
from lckd_mm.functional import bn_margin
from lckd_mm.hosts import build_model, fabricate_samples, read_model_config
from lckd_mm.losses import OFDLoss

CONFIGS = ROOT / 'configs'
# CIFAR-100's settings: teacher, student, batch size, alpha, factor on alpha after 60 % of the epochs, last learning
# rate (of 0.1).
SETTINGS = {
    'a': ('wrn28-4', 'wrn16-4', 128, 0.8, 0.25, 1 / 100),
    'b': ('wrn28-4', 'wrn28-2', 128, 0.2, None, 1 / 100),
    'c': ('wrn28-4', 'wrn16-2', 128, 0.25, None, 1 / 500),
    'd': ('wrn28-4', 'resnet56', 128, 1.0, 2.0, 1 / 500),
    'e': ('pyramidnet200-240', 'wrn28-4', 64, 4.0, None, 1 / 1000),
    'f': ('pyramidnet200-240', 'pyramidnet110-84', 64, 1.0, None, 1 / 500),
    'g': ('wrn28-4', 'mobilenetv1', 128, 1.0, None, 1 / 100),
}
IMAGENET = ('resnet152_resnet50', 'resnet50_mobilenetv1')
OFD = 'segmentation/ofd_deeplabv3plus_r101-d16_deeplabv3plus_r18-d16_1xb12-44k_voc12aug-513x513'
# Of each pair the config with the most terms, and one of each further method; CIFAR-100's own pairs have a test below.
LEAVES = [
    *(f'cifar100/{m}_resnet56_resnet20_1xb128_cifar100' for m in ('ie', 'ie-at', 'ie-ofd')),
    *(f'cifar100/kd-{kind}_wrn28-4_wrn16-2_1xb128_cifar100' for kind in ('topk', 'rel', 'pt', 'sim')),
    'cifar100/pruned-channels_resnet32x4_1xb128_cifar100',
    'cifar100/pruned-channels-kd_resnet32x4_resnet32x4_1xb128_cifar100',
    'imagenet/lckd-kd_resnet152_resnet50_8xb32_in1k',
    'imagenet/lckd-kd_resnet50_mobilenetv1_8xb32_in1k',
    *(
        f'segmentation/{m}_{n}_r101-d8_{n}_r18-d8_4xb4-20k_voc12aug-512x512'
        for m in ('cwd', 'lckd-kd') for n in ('fcn', 'pspnet')
    ),
    *(
        f'segmentation/lckd-kd_deeplabv3plus_r101-d16_deeplabv3plus_{s}-d16_1xb12-44k_voc12aug-513x513'
        for s in ('r18', 'm-v2')
    ),
    *(f'detection/lckd-kd_ssd300-r50_ssd300-{s}_8xb8_voc0712' for s in ('r18', 'mobilenetv1')),
    *(f'detection/{m}_retinanet-r50_retinanet-r18_8xb2_voc0712' for m in ('lckd-kd', 'ie', 'fgd')),
    *(f'detection/lckd_faster-rcnn-{t}_faster-rcnn-{s}_8xb2_voc0712' for t, s in (('r50', 'r18'), ('r101', 'r50'))),
    'detection/lckd-kd_gfl-r50_gfl-r18_8xb2_voc0712',
    *(
        f'detection/{m}_{n}-r50_{n}-r18_8xb2_voc0712'
        for n in ('retinanet', 'gfl') for m in ('pkd', 'mgd', 'swl2', 'bckd', 'crosskd')
    ),
    'detection/ld_gfl-r50_gfl-r18_8xb2_voc0712',
]  # fmt: skip
# These run under `make test-all` alone; others look at the same code.
FULL = ('ie-', 'kd-pt', 'kd-sim', 'lckd-kd_resnet152', 'cwd_pspnet', 'lckd-kd_fcn', 'pkd', 'mgd', 'swl2', 'bckd', 'ld_',
        'crosskd_retinanet', 'lckd-kd_pspnet', 'fgd',
        'lckd-kd_deeplabv3plus_r101-d16_deeplabv3plus_m', 'lckd-kd_ssd300-r50_ssd300-m', 'lckd_faster')  # fmt: skip


def marked(leaf):
    name = leaf.partition('/')[2]
    return pytest.param(leaf, id=name, marks=pytest.mark.full if name.startswith(FULL) else [])


def cifar(method, setting):
    teacher, student, batch, *_ = SETTINGS[setting]
    return f'cifar100/{method}_{teacher}_{student}_1xb{batch}_cifar100'


def load(leaf):
    return Config.fromfile(CONFIGS / f'{leaf}.py')


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


# ---- a few images in the layout of each data set


@pytest.fixture(scope='module')
def cifar100(tmp_path_factory):
    """The three pickles of CIFAR-100's archive, in a folder that mmpretrain takes for the real one."""
    from mmpretrain.datasets import CIFAR100

    root, rng, sums = tmp_path_factory.mktemp('cifar100'), np.random.default_rng(0), {}
    names = dict(fine_label_names=[f'fine {i}' for i in range(100)])
    splits = {
        split: dict(
            data=rng.integers(256, size=(images, 3072), dtype=np.uint8),
            fine_labels=[int(y) for y in rng.integers(100, size=images)],
        )
        for split, images in (('train', 8), ('test', 4))
    }
    (root / 'cifar-100-python').mkdir()
    for name, entry in dict(splits, meta=names).items():
        content = pickle.dumps(entry)
        (root / 'cifar-100-python' / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR100, 'train_list', [['train', sums['train']]])
        patch.setattr(CIFAR100, 'test_list', [['test', sums['test']]])
        patch.setattr(CIFAR100, 'meta', {**CIFAR100.meta, 'md5': sums['meta']})
        yield root


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    """train and val, a folder per class, JPEG files of several sizes; one of them grey, as some of ImageNet's are."""
    root, rng = tmp_path_factory.mktemp('imagenet'), np.random.default_rng(0)
    for split in ('train', 'val'):
        for label in range(1000):
            folder = root / split / f'n{1440764 + label:08d}'
            folder.mkdir(parents=True)
            for i in range(2 if (split, label) == ('train', 0) else 1):
                pixels = rng.integers(256, size=(8 + 2 * i, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels if i == 0 else pixels[..., 0]).save(folder / f'{folder.name}_{i}.JPEG')
    return root


@pytest.fixture(scope='module')
def segmentation(tmp_path_factory):
    return voc_tree(tmp_path_factory.mktemp('data') / 'VOC2012')


OBJECT = """<object><name>{}</name><pose>Left</pose><truncated>0</truncated><difficult>{}</difficult><bndbox>
<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


@pytest.fixture(scope='module')
def detection(tmp_path_factory):
    """VOCdevkit with two images each of VOC2007 trainval and test, and of VOC2012 trainval."""
    root, rng = tmp_path_factory.mktemp('data') / 'VOCdevkit', np.random.default_rng(0)
    objects = [('dog', 0, 10, 12, 70, 80), ('person', 0, 60, 20, 130, 95), ('cat', 1, 5, 5, 60, 60)]
    size = '<size><width>140</width><height>100</height><depth>3</depth></size><segmented>0</segmented>'
    for year, split, names in (
        ('VOC2007', 'trainval', ('000005', '000007')),
        ('VOC2007', 'test', ('000001', '000002')),
        ('VOC2012', 'trainval', ('2008_000002', '2008_000003')),
    ):
        for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
            (root / year / folder).mkdir(parents=True, exist_ok=True)
        (root / year / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')
        for name in names:
            pixels = rng.integers(0, 255, (100, 140, 3), np.uint8)
            cv2.imwrite(str(root / year / f'JPEGImages/{name}.jpg'), pixels)
            inside = f'<filename>{name}.jpg</filename>{size}' + ''.join(OBJECT.format(*thing) for thing in objects)
            (root / year / f'Annotations/{name}.xml').write_text(f'<annotation>{inside}</annotation>')
    return root


# ---- a config as it is, but for widths or depths, image and batch sizes, and the teacher's file


def shallow(model):
    """Of CIFAR-100: as few layers as the architecture allows."""
    depths = {'lckd_mm.WideResNet': 10, 'lckd_mm.CifarResNet': 8}
    if model.backbone.type == 'lckd_mm.PyramidNet':
        model.backbone.depth = 11 if model.backbone.get('bottleneck') else 8
    elif model.backbone.type in depths:
        model.backbone.depth = depths[model.backbone.type]


def narrow_classifier(model):
    if model.backbone.type == 'ResNet':
        model.backbone.update(depth=50, base_channels=8, stem_channels=8)
    else:
        model.backbone.width_multiplier = 0.25
    model.head.in_channels = 256


SIZE = 65


def narrow_segmentor(model):
    """A sixteenth of the width; depth, strides and head stay."""
    model.pretrained = None
    model.data_preprocessor.size = (SIZE, SIZE)
    head, backbone = model.decode_head, model.backbone
    if backbone.type == 'MobileNetV2':
        backbone.widen_factor = 0.25
        head.update(in_channels=80, c1_in_channels=8)
    else:
        backbone.update(base_channels=4, stem_channels=8)
        expansion = 4 if backbone.depth > 34 else 1
        head.in_channels = 32 * expansion
        if 'c1_in_channels' in head:
            head.c1_in_channels = 4 * expansion
        if model.get('auxiliary_head'):
            model.auxiliary_head.update(in_channels=16 * expansion, channels=8)
    head.channels = 16


def narrow_detector(model):
    backbone = model.backbone
    backbone.init_cfg = None
    if backbone.type == 'ResNet':
        backbone.update(base_channels=4, stem_channels=4)
        widths = [4 * 2**i * (1 if backbone.depth == 18 else 4) for i in range(4)]
    else:
        backbone.width_multiplier = 0.125
        widths = [16, 32, 64, 128]
    if model.neck.type == 'SSDNeck':
        widths = (*widths[1:], 16, 8, 8)
        model.neck.update(in_channels=widths[:3], out_channels=widths)
        model.bbox_head.in_channels = widths
        return
    model.neck.update(in_channels=widths, out_channels=8)
    if 'rpn_head' in model:
        model.rpn_head.update(in_channels=8, feat_channels=8)
        model.roi_head.bbox_roi_extractor.out_channels = 8
        model.roi_head.bbox_head.update(in_channels=8, fc_out_channels=16)
    else:
        # GFL normalises 32 groups of channels, and a group needs more than one channel on a map of 1 x 1.
        model.bbox_head.update(in_channels=8, feat_channels=64, stacked_convs=3)


NARROW = dict(cifar100=shallow, imagenet=narrow_classifier, segmentation=narrow_segmentor, detection=narrow_detector)


def resize(dataset, root):
    """Root and image sizes of a data set of VOC."""
    dataset.data_root = str(root)
    for step in dataset.pipeline:
        if step.type in ('RandomCrop', 'Pad'):
            step['crop_size' if step.type == 'RandomCrop' else 'size'] = (SIZE, SIZE)
        elif step.type == 'Resize' and step.keep_ratio and 'bbox' in str(dataset.pipeline):
            step.scale = (160, 96)
        elif 'scale' in step and 'bbox' not in str(dataset.pipeline):
            step.scale = (2 * SIZE, SIZE)


def random_weights(model, scope):
    net = build_model(model, scope)
    if hasattr(net, 'level_embed'):  # left as the memory was until this
        net.init_weights()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.3)
            torch.nn.init.normal_(module.bias)
    return net.state_dict()


@pytest.fixture
def small(request, tmp_path):
    """``small('segmentation/cwd_…', iters=2)``: the config, ready to run."""

    def make(leaf, iters=2):
        folder = leaf.partition('/')[0]
        root, cfg = request.getfixturevalue(folder), load(leaf)
        init_default_scope(cfg.default_scope)
        torch.manual_seed(1)
        model, file = cfg.model, str(tmp_path / 'teacher.pth')
        nets = model.nets if 'nets' in model else [model]
        if 'teacher' in model:
            nets = [model.student, read_model_config(model.teacher.model, 'teacher')[0]]
            model.student, _ = nets = [Config(dict(net=net)).net for net in nets]
        for net in nets:
            NARROW[folder](net)
        torch.save(dict(state_dict=random_weights(nets[-1], cfg.default_scope)), file)
        if 'teacher' in model:
            model.teacher.update(model=nets[-1], checkpoint=file)
            model.setdefault('dry_run_size', 32 if folder == 'cifar100' else 64)
            cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
        if cfg.get('load_from'):
            cfg.load_from = file
        for term in model.get('terms', {}).values():
            if isinstance(term.get('teacher_connector'), dict) and 'batches' in term.teacher_connector:
                term.teacher_connector.batches = 2
        data = cfg.train_dataloader.dataset
        if folder == 'cifar100':
            data.data_prefix = cfg.val_dataloader.dataset.data_prefix = str(root)
        elif folder == 'imagenet':
            data.update(data_root=str(root), indices=4)
            cfg.val_dataloader.dataset.update(data_root=str(root), indices=2)
        else:
            data = data if 'datasets' in data else data.dataset
            for dataset in [*data.datasets, cfg.val_dataloader.dataset]:
                resize(dataset, root)
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.update(num_workers=0, persistent_workers=False)
        cfg.train_dataloader.batch_size = 4 if folder == 'cifar100' else 2
        if folder == 'segmentation':
            cfg.train_cfg.update(max_iters=iters, val_interval=iters)
            cfg.default_hooks.checkpoint.interval = iters
        else:
            cfg.train_cfg.update(max_epochs=1, val_interval=1)
            cfg.default_hooks.checkpoint.interval = 1
        if folder == 'detection':
            cfg.train_dataloader.dataset.times = 1
            # It reads every tap of both nets in each iteration.
            monitor = dict(type='lckd_mm.LipschitzMonitorHook', on=['stage2', 'stage3', 'stage4'], interval=1)
            cfg.custom_hooks = [h for h in cfg.get('custom_hooks', []) if h.type != monitor['type']] + [monitor]
        cfg.default_hooks.logger.interval = 1
        cfg.work_dir, cfg.log_level = str(tmp_path / 'run'), 'WARNING'
        check_data(cfg, ('train_dataloader', 'val_dataloader'))
        return cfg

    return make


class Recorder(Hook):
    """Keeps what each loss was made of, iteration by iteration."""

    def before_train(self, runner):
        self.seen = []
        if hasattr(runner.model, 'observers'):
            runner.model.observers.append(lambda *parts: self.seen.append(parts))


# ---- training


@pytest.mark.parametrize('leaf', [marked(leaf) for leaf in LEAVES])
def test_two_steps_and_a_validation(leaf, small, tmp_path):
    name = leaf.partition('/')[2]
    steps = 3 if 'deeplab' in name else 2  # of four images: the warm-up's epoch is two
    cfg = small(leaf, steps)
    pruning = next((h for h in cfg.get('custom_hooks', []) if h['type'] == 'lckd_mm.PruningHook'), None)
    if pruning:
        pruning['end'] = 1
    recorder = Recorder()
    runner = run(cfg, recorder)
    assert runner.iter == steps
    entries = scalars(tmp_path / 'run')
    metric = {'mmdet': 'pascal_voc/mAP', 'mmseg': 'mIoU', 'mmpretrain': 'accuracy/top1'}[cfg.default_scope]
    (validated,) = [e for e in entries if metric in e]
    trained = [e for e in entries if 'loss' in e]
    assert len(trained) == steps and all(math.isfinite(e['loss']) for e in trained)
    for term in getattr(runner.model, 'terms', []):
        sign = -1 if term == 'loss_explore' else 1  # it is as far below 0 as the student is away
        assert all(math.isfinite(e[term]) and sign * e[term] > 0 for e in trained), term
    (file,) = [*(tmp_path / 'run').glob('iter_*.pth'), *(tmp_path / 'run').glob('epoch_*.pth')]
    saved = torch.load(file, weights_only=False)['state_dict']
    plain = student_config(cfg).model
    plain.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    student = build_model(plain, cfg.default_scope)
    student.load_state_dict(saved, strict=True)
    if cfg.default_scope == 'mmdet':
        (sample,) = predictions(student)
        assert torch.isfinite(sample.pred_instances.scores).all()
        if 'ssd300' in name:
            plain.bbox_head.type = 'SSDHead'
            build_model(plain, 'mmdet').load_state_dict(saved, strict=True)
    if name.startswith('ie'):
        check_exploration(name, runner, recorder)
    elif name.startswith('kd-'):
        check_partial(name, runner, recorder)
    elif pruning:
        check_pruned(name, getattr(runner.model, 'student', runner.model), validated)


@torch.no_grad()
def predictions(model, size=300):
    model.eval()
    image = torch.randn(1, 3, size, size)
    return model(image, fabricate_samples(model, 1, (size, size)), mode='predict')


def check_exploration(name, runner, recorder):
    explore = runner.model.terms['loss_explore']
    wrapped = {'ie': 'FTLoss', 'ie-at': 'ATLoss', 'ie-ofd': 'OFDLoss'}[name.partition('_')[0]]
    assert type(explore.loss.wrapped).__name__ == wrapped
    for *_, losses in recorder.seen:
        assert 0 > losses['loss_explore'] >= -explore.weight * 3000


def check_partial(name, runner, recorder):
    loss = runner.model.terms['loss_kd'].loss
    assert loss.kind == name.partition('_')[0].removeprefix('kd-')
    for s, t, _, losses in recorder.seen if loss.kind == 'topk' else ():
        p, q = (z['logits'].div(4) for z in (t, s))
        kept = p.softmax(1).sort(1, descending=True).values[:, :25].sum(1)
        rho = torch.where(p >= p.topk(25, 1).values[:, -1:], p.softmax(1), ((1 - kept) / 75)[:, None])
        expected = 16 * (rho * (rho.log() - q.log_softmax(1))).sum(1).mean()
        torch.testing.assert_close(losses['loss_kd'], expected, rtol=1e-4, atol=1e-6)
    assert math.isfinite(runner.message_hub.get_scalar('train/rescale_kd_mean').current())


def check_pruned(name, net, validated):
    block = net.backbone.layer3[0]
    pruned = block.conv1.weight.flatten(1).abs().sum(1) == 0
    assert block.conv1.weight.shape == (256, 128, 3, 3)
    assert int(pruned.sum()) == int(0.45 * 256) and not block.bn1.bias[pruned].any()
    assert ('class_bias/cev' in validated) == name.startswith('pruned-channels-kd')


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
def test_two_steps_on_cifar100_have_the_published_losses(setting, small):
    recorder = Recorder()
    runner = run(small(cifar('lckd-kd', setting)), recorder)
    assert len(recorder.seen) == 2
    alpha, teacher, trace = SETTINGS[setting][3], runner.model.teacher.model, runner.model.teacher_taps.traces
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


@pytest.mark.parametrize('method', ['kd', 'afd'])
def test_nets_that_learn_together_take_two_steps(method, small, tmp_path):
    cfg = small(f'cifar100/online-{method}_resnet32_resnet32_1xb128_cifar100')
    cfg.default_hooks.distillation = dict(type='lckd_mm.OnlineHook')
    runner = run(cfg)
    assert runner.iter == 2
    logged = runner.message_hub.log_scalars
    parts = ['loss_task', 'loss_kd'] + ['loss_adversarial'] * (method == 'afd')
    assert all(logged[f'train/net{k}.{part}'].current() > 0 for k in (0, 1) for part in parts)
    assert {'val/accuracy/top1', 'val/net1/accuracy/top1', 'val/ensemble/accuracy/top5'} <= set(logged)
    alone = load('cifar100/resnet32_1xb128_cifar100')
    shallow(alone.model)
    for file in ('epoch_1.pth', 'epoch_1.net1.pth'):
        state = torch.load(tmp_path / 'run' / file)['state_dict']
        build_model(alone.model, 'mmpretrain').load_state_dict(state)


def test_ofds_recipe(small):
    """Six layers by the published sum; the connectors alone at first; ten times the learning rate for what is new."""
    norms = {f'stage{i}': f'backbone.layer{i}.2.bn3' for i in (1, 4)}
    norms |= {'stage2': 'backbone.layer2.3.bn3', 'stage3': 'backbone.layer3.22.bn3'}
    norms |= {'aspp': 'decode_head.bottleneck.bn', 'decoder': 'decode_head.sep_bottleneck.1.pointwise_conv.bn'}
    divisors, seen = dict(stage1=8, stage2=4, stage3=2, stage4=1, aspp=1, decoder=16), []

    class Watch(Hook):
        def before_train(self, runner):
            self.model = runner.model
            self.model.observers.append(self.see)

        def see(self, student, teacher, connected, losses):
            total = 0.0
            for tap, divisor in divisors.items():
                norm = self.model.teacher.model.get_submodule(norms[tap])
                margin = bn_margin(norm.weight, norm.bias).view(1, -1, 1, 1)
                distance = OFDLoss()(connected['loss_ofd'][tap], torch.maximum(teacher[tap], margin))
                total = total + distance / divisor
            weights = {key: p.detach().clone() for key, p in self.model.named_parameters()}
            seen.append((1e-5 * total.item(), losses['loss_ofd'].item(), weights))

    runner = run(small(OFD, iters=4), Watch())
    for expected, value, _ in seen:
        assert value == pytest.approx(expected, rel=1e-4)
    first, second, third, last = (weights for _, _, weights in seen)
    for name in first:
        moved = [not torch.equal(a[name], b[name]) for a, b in ((first, second), (third, last))]
        if name.startswith('terms.'):
            assert moved == [True, True], name
        elif name.endswith('conv1.weight'):
            assert moved == [False, True], name
    rates = {p: g['initial_lr'] for g in runner.optim_wrapper.optimizer.param_groups for p in g['params']}
    for name, parameter in runner.model.named_parameters():
        assert rates[parameter] == pytest.approx(0.007 if name.startswith('backbone.') else 0.07), name
    assert runner.model.teacher.bn == 'batch'


# ---- recipes


def test_every_pair_is_trained_here_or_in_the_demos():
    trained = {leaf.partition('/')[2].split('_', 1)[1] for leaf in [*LEAVES, *(cifar('kd', s) for s in SETTINGS)]}
    for path in (CONFIGS / '_base_/pairs').glob('*.py'):
        pair, data = path.stem.rsplit('_', 1)
        elsewhere = data in (
            'digits300',
            'digit-scenes',
            'coco',
            'cityscapes',
            'ade20k',
            'bccd',
            'nuclei',
            'fashion-mnist6000',
        )  # the last: test_published_pairs, test_real_image_configs
        assert elsewhere or any(f'{leaf}_'.startswith(f'{pair}_') for leaf in trained), pair


@pytest.mark.parametrize('setting', SETTINGS)
def test_cifar100s_recipe_is_the_papers(setting):
    _, student, batch, alpha, factor, last = SETTINGS[setting]
    cfg = load(cifar('lckd', setting))
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
    assert cfg.model.student == load(f'cifar100/{student}_1xb{batch}_cifar100').model
    assert {m: sorted(load(cifar(m, setting)).model.terms) for m in ('kd', 'ofd', 'lckd', 'lckd-kd')} == {
        'kd': ['loss_kd'],
        'ofd': ['loss_ofd'],
        'lckd': ['loss_lipschitz', 'loss_ofd'],
        'lckd-kd': ['loss_kd', 'loss_lipschitz', 'loss_ofd'],
    }
    assert (CONFIGS / f'cifar100/{Path(cfg.model.teacher.checkpoint).parent.name}.py').is_file()


def test_recipes_of_exploration_and_pruning():
    cfg = load(LEAVES[0])
    assert [s.milestones for s in cfg.param_scheduler] == [[80, 120]] and cfg.train_cfg.max_epochs == 160
    assert cfg.model.terms.loss_inherit.teacher_connector.batches == 30 * math.ceil(50000 / 128)
    for leaf in LEAVES[7:9]:
        cfg = load(leaf)
        assert (cfg.custom_hooks[0].kind, cfg.custom_hooks[0].sparsity) == ('structured', 0.45)
        assert cfg.load_from.startswith('work_dirs/resnet32x4_1xb128_cifar100/')


def test_the_superclasses_are_cifars_own():
    from mmpretrain.datasets.categories import CIFAR100_CATEGORIES

    groups = load(cifar('kd-rel', 'c')).model.terms.loss_kd.loss.superclasses
    members = [[n for n, g in zip(CIFAR100_CATEGORIES, groups) if g == i] for i in range(20)]
    assert all(len(names) == 5 for names in members)
    assert members[0] == ['beaver', 'dolphin', 'otter', 'seal', 'whale']
    assert members[14] == ['baby', 'boy', 'girl', 'man', 'woman']
    assert members[19] == ['lawn_mower', 'rocket', 'streetcar', 'tank', 'tractor']


def test_missing_files_are_said_or_fetched():
    cfg = load('cifar100/wrn16-4_1xb128_cifar100')
    check_data(cfg, ('train_dataloader',))  # mmpretrain fetches CIFAR-100 by itself
    cfg.train_dataloader.dataset.download = False
    with pytest.raises(FileNotFoundError, match='data/cifar100'):
        check_data(cfg, ('train_dataloader',))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_imagenets_folders_are_read_with_their_classes(imagenet, split):
    cfg = load('imagenet/resnet50_8xb32_in1k')
    init_default_scope('mmpretrain')
    dataset_cfg = cfg[f'{split}_dataloader'].dataset
    dataset_cfg.data_root = str(imagenet)
    dataset = DATASETS.build(dataset_cfg)
    labels = dataset.get_gt_labels().tolist()
    assert labels == ([0] if split == 'train' else []) + list(range(1000))
    assert dataset[0]['inputs'].shape == (3, 224, 224)


@pytest.mark.parametrize('pair', IMAGENET)
def test_imagenets_recipe_is_the_papers(pair):
    cfg = load(f'imagenet/lckd_{pair}_8xb32_in1k')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay, optimizer.nesterov) == (0.1, 0.9, 1e-4, True)
    assert (cfg.param_scheduler.milestones, cfg.param_scheduler.gamma) == ([30, 60, 90], 0.1)
    assert cfg.train_cfg.max_epochs == 100
    assert (cfg.model.teacher.bn, cfg.model.teacher.checkpoint) == ('batch', f'torchvision://{pair.partition("_")[0]}')
    assert cfg.model.terms.loss_ofd.weight == 1e-4
    assert cfg.model.terms.loss_lipschitz.weight == pytest.approx(4 * 2000 / (10000 * 96))
    assert cfg.model.student == load(f'imagenet/{pair.partition("_")[2]}_8xb32_in1k').model


@pytest.mark.parametrize('path', sorted((CONFIGS / 'detection').glob('*_*_*_8xb*_voc0712.py')), ids=lambda p: p.stem)
def test_a_detectors_leaf_says_what_its_name_says(path):
    method, teacher, student, tail = path.stem.split('_', 3)
    cfg = Config.fromfile(path)
    alone = load(f'detection/{student}_{tail}')
    assert cfg.model.student == alone.model
    for key in ('train_dataloader', 'val_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'val_evaluator'):
        assert cfg[key] == alone[key], key
    batch = int(tail.split('_')[0].partition('xb')[2])
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == 8 * batch
    kinds = {'ssd300': 'SingleStageDetector', 'retinanet': 'RetinaNet', 'faster-rcnn': 'FasterRCNN', 'gfl': 'GFL'}
    for role, net in (
        (read_model_config(cfg.model.teacher.model, 'teacher')[0], teacher),
        (cfg.model.student, student),
    ):
        family, _, backbone = net.rpartition('-')
        assert role['type'] == kinds[family]
        assert backbone == 'mobilenetv1' or role['backbone']['depth'] == int(backbone[1:])
    distributions = {'loss_ld'} if teacher.startswith('gfl') else set()
    names = {
        'lckd': {'loss_ofd', 'loss_lipschitz'},
        'ie': {'loss_inherit', 'loss_explore'},
        'bckd': {'loss_bckd', 'loss_boxes'},
        'crosskd': {'loss_crosskd', 'loss_boxes'} | distributions,
    }
    assert set(cfg.model.terms) == set().union(*(names.get(part, {f'loss_{part}'}) for part in method.split('-')))
    epochs = cfg.train_cfg.max_epochs
    file = teacher.replace('-', '_') + '_fpn_1x_voc0712' if teacher == 'retinanet-r50' else f'{teacher}_{tail}'
    assert cfg.model.teacher.checkpoint == f'work_dirs/{file}/epoch_{epochs}.pth'


@pytest.mark.parametrize(
    ('leaf', 'classes', 'student', 'teacher', 'about'),
    [
        # Every class as likely, against 0.99 for the background; then heads' prior against a teacher's 0.001.
        ('kd_ssd300-r50_ssd300-r18_8xb8', 21, [0.0] * 21, [0.0] * 20 + [7.6], 6.0),
        ('kd_retinanet-r50_retinanet-r18_8xb2', 20, [-4.6] * 20, [-6.9] * 20, 1.3),
    ],
)
def test_kd_begins_at_the_size_that_its_comment_says(leaf, classes, student, teacher, about):
    term = load(f'detection/{leaf}_voc0712').model.terms.loss_kd
    loss = MODELS.build(dict(term.loss, num_classes=classes, activation='softmax' if classes == 21 else 'sigmoid'))
    # Two anchors a position.
    student, teacher = (torch.tensor(2 * scores).view(1, -1, 1, 1).expand(1, -1, 3, 4) for scores in (student, teacher))
    assert term.weight * loss([student], [teacher]).item() == pytest.approx(about, rel=0.05)
