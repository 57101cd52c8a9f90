"""Torch modules of no host as teachers: import paths, their own images, tokens as maps, the promises of a teacher."""

import re

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import init_default_scope
from run_helpers import HOSTS, ROOT, config, run, scalars, scenes, teacher_file, validation
from torch import nn
from torchvision.models import VisionTransformer

from lckd_mm.distillation import FrozenTeacher
from lckd_mm.distillation.teacher import teacher_net
from lckd_mm.hosts import build_model, fabricate_samples
from lckd_mm.storage.files import read_checkpoint
from lckd_mm.taps import FeatureTaps

MEAN, STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
SIZES = dict(image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)


class Registers(nn.Module):
    """Tokens of patches, for images of any size, with three tokens before them; names begin with model."""

    def __init__(self, width=16, patch=14, tokens=3):
        super().__init__()
        self.model = nn.ModuleDict(dict(patches=nn.Conv2d(3, width, patch, patch), norm=nn.LayerNorm(width)))
        self.first = nn.Parameter(torch.randn(1, tokens, width))

    def forward(self, images):
        tokens = self.model['patches'](images).flatten(2).mT
        return dict(tokens=self.model['norm'](torch.cat([self.first.expand(len(images), -1, -1), tokens], 1)))


class Stubborn(nn.Module):
    def __init__(self, works=True):
        super().__init__()
        if not works:
            raise RuntimeError('no luck')


def number():
    return 3


@pytest.fixture
def weights(tmp_path):
    """``weights(module)``: a file with its state dict."""

    def save(net, name='module.pth'):
        torch.save(net.state_dict(), tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture
def vit(weights):
    """The keys of a teacher: torchvision's vision transformer, whose positions fit images of 64 x 64 alone."""
    torch.manual_seed(2)
    file = weights(VisionTransformer(**SIZES))
    return dict(module='torchvision.models.VisionTransformer', args=SIZES, checkpoint=file, mean=MEAN, std=STD,
                size=64, patch=16, prefix=1)  # fmt: skip


def student(host):
    net = HOSTS[host][0](4)
    return net | HOSTS[host][3]


def distiller(host, teacher, taps=None, **term):
    """Its deepest map is compared with the teacher's tokens."""
    term = dict(
        loss=dict(type='lckd_mm.CosineLoss'), student='stage4', teacher='tokens', weight=1.0,
        connector=[dict(type='lckd_mm.ConvBN'), dict(type='lckd_mm.MatchSize')],
    ) | term  # fmt: skip
    return dict(
        type='lckd_mm.Distiller', student=student(host), teacher=teacher, student_taps='backbone',
        teacher_taps=taps or dict(tokens='encoder.ln'), terms=dict(loss_cosine=term), dry_run_size=64,
    )  # fmt: skip


def built(host, scope, *args, **kwargs):
    scope(host)
    torch.manual_seed(0)
    made = build_model(distiller(host, *args, **kwargs), host)
    made.init_weights()
    return made.train()


@pytest.mark.parametrize('host', HOSTS)
def test_the_tokens_are_a_map_of_the_module_s_own_images(host, scope, vit):
    made = built(host, scope, vit)
    images, samples = torch.randn(2, 3, 96, 160), fabricate_samples(made.student, 2, (96, 160))
    found = made.teacher(made.teacher_taps, ['tokens'], images, samples)['tokens']
    # By hand: the student's images back to 0 to 255, RGB, in the module's normalisation, resized.
    own = made.student.data_preprocessor
    pixels = images * own.std + own.mean
    given = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    given = F.interpolate(given, (64, 64), mode='bilinear', antialias=True)
    net = VisionTransformer(**SIZES).eval()
    net.load_state_dict(torch.load(vit['checkpoint']))
    tokens = []
    net.encoder.ln.register_forward_hook(lambda _, args, output: tokens.append(output))
    net(given)
    torch.testing.assert_close(found, tokens[0][:, 1:].mT.reshape(2, 16, 4, 4))
    losses = made.loss(images, samples)
    losses['loss_cosine'].backward()
    assert losses['loss_cosine'] > 0 and next(made.student.backbone.parameters()).grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in made.teacher.model.parameters())
    assert not any('encoder' in key for key in made.state_dict())


def test_sides_are_scaled_and_rounded_to_patches(scope, weights):
    file = weights(Registers())
    teacher = dict(module=Registers, checkpoint=file, mean=MEAN, std=STD, scale=0.5, patch=14, prefix=3)
    made = built('mmseg', scope, teacher, dict(tokens='model.norm'))
    seen = []
    made.teacher.model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[2:])))
    for size, grid in (((64, 64), (2, 2)), ((96, 160), (3, 6)), ((20, 400), (1, 14))):
        images = torch.randn(1, 3, *size)
        found = made.teacher(made.teacher_taps, ['tokens'], images, fabricate_samples(made.student, 1, size))
        assert seen[-1] == (14 * grid[0], 14 * grid[1]) and found['tokens'].shape == (1, 16, *grid)
    # Without a size, scale or patch the student's images are given as they are.
    sizes = dict(in_channels=3, out_channels=2, kernel_size=1)
    plain = FrozenTeacher(module=nn.Conv2d, args=sizes, checkpoint='as built', mean=[0, 0, 0], std=[1, 1, 1])
    assert plain.convert(images, None) is images and plain.images.sized((33, 65)) == (33, 65)


@pytest.mark.parametrize('host', ['mmseg', 'mmdet'])
def test_a_run_is_the_student_s_own_and_more(host, scenes, tmp_path, vit):
    """Weight 0 is the plain run to the bit; a resumed run ends as an undisturbed one; no file holds the teacher."""
    plain = run(config(host, scenes, tmp_path / 'plain', student(host), 10))
    cfg = config(host, scenes, tmp_path / 'null', distiller(host, vit, weight=0.0), 10)
    null = run(cfg).model.state_dict()
    assert all(torch.equal(value, null[key]) for key, value in plain.model.state_dict().items())

    def cfg_of(name, **extra):
        cfg = config(host, scenes, tmp_path / name, distiller(host, vit), 20, **extra)
        cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
        cfg.custom_hooks = [dict(type='lckd_mm.ResumeHook')]
        return cfg

    whole = run(cfg_of('whole')).model.state_dict()
    again = run(cfg_of('again', load_from=str(tmp_path / 'whole' / 'iter_10.pth'), resume=True))
    assert all(torch.equal(value, whole[key]) for key, value in again.model.state_dict().items())
    assert 'loss_cosine' in scalars(tmp_path / 'whole')[0]
    stored = read_checkpoint(str(tmp_path / 'whole' / 'iter_20.pth'), 'test')
    assert list(stored['state_dict']) == list(plain.model.state_dict())
    assert not any('encoder' in key for key in stored['lckd_mm']['terms'])


def test_the_names_of_its_weights_stay_as_they_are(scope, weights):
    net = Registers()
    file = weights(net)
    teacher = FrozenTeacher(module=Registers, checkpoint=file, mean=MEAN, std=STD)
    teacher.load()
    assert torch.equal(teacher.model.first, net.first)
    # All names of this one begin with a prefix that other files have.
    inner = nn.ModuleDict(dict(model=nn.Linear(2, 2)))
    file = weights(inner, 'inner.pth')
    teacher = FrozenTeacher(
        module=lambda: nn.ModuleDict(dict(model=nn.Linear(2, 2))), checkpoint=file, mean=MEAN, std=STD
    )
    teacher.load()
    assert torch.equal(teacher.model['model'].weight, inner['model'].weight)
    short = {key: value for key, value in net.state_dict().items() if key != 'first'}
    torch.save(short, file)
    with pytest.raises(ValueError, match=r'does not fit Registers: missing first'):
        FrozenTeacher(module=Registers, checkpoint=file, mean=MEAN, std=STD).load()


def test_a_file_of_safetensors(weights, tmp_path):
    safetensors = pytest.importorskip('safetensors.torch', reason='safetensors is not installed')
    net = Registers()
    safetensors.save_file(net.state_dict(), tmp_path / 'model.safetensors')
    teacher = FrozenTeacher(module=Registers, checkpoint=str(tmp_path / 'model.safetensors'), mean=MEAN, std=STD)
    teacher.load()
    assert torch.equal(teacher.model.first, net.first)
    (tmp_path / 'model.safetensors').write_bytes(b'no such file')
    with pytest.raises(ValueError, match='is no intact file of safetensors'):
        FrozenTeacher(module=Registers, checkpoint=str(tmp_path / 'model.safetensors'), mean=MEAN, std=STD).load()


NET = dict(
    backbone=dict(type='mmpretrain.ResNet', depth=18), data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor')
)
REFUSED = {
    'nothing': (dict(module=None), 'write either model= for a net of mmpretrain, mmseg or mmdet, or module='),
    'both': (dict(model='mmseg::fcn/x.py'), 'write either model= for a net of mmpretrain, mmseg or mmdet, or module='),
    'no checkpoint': (dict(checkpoint=None), "(or checkpoint='as built' for a function that loads weights itself)"),
    'no normalisation': (dict(std=None), 'write mean=[…] and std=[…], of RGB in the units 0 to 255'),
    'units': (dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
              'write mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]'),
    'no package': (dict(module='no_such.package'), "needs the package 'no_such', which is not installed"),
    'no name': (dict(module='torchvision.models.nothing'), "is no import path (AttributeError: module"),
    'no function': (dict(module='torch.float32'), 'is a dtype; name a class or function'),
    'a failure': (dict(args=dict(works=False), module=Stubborn), "args={'works': False}: RuntimeError: no luck"),
    'another thing': (dict(module=number, args={}), 'makes a int, not a torch module'),
    'no parameters': (dict(module='torch.nn.ReLU', args={}), 'ReLU has no parameters'),
    'a model of a host': (dict(module='mmpretrain.models.ImageClassifier', args=NET),
                          'ImageClassifier is a model of mmpretrain; write model='),
    'args': (dict(args=[1]), 'args must be a dict of keyword arguments, got list [1]'),
    'prefix': (dict(prefix=4),
               'gives 17 tokens, but prefix=4 and the 4 x 4 patches of an image of 64 x 64 make 20; set prefix=1'),
    'patch': (dict(patch=8), 'gives 17 tokens, but prefix=1 and the 8 x 8 patches of an image of 64 x 64 make 65; '
              "patch is the side of the teacher's patches"),
    'prefix alone': (dict(patch=None), 'whose sides follow from that of a patch; write patch=… too'),
    'size': (dict(size=60), 'size=60 is no multiple of patch=16; write size=(64, 64)'),
    'size and scale': (dict(scale=0.5), 'size fixes height and width, so scale has no effect'),
    'three sides': (dict(size=[64, 64, 3]), 'size must be one number, or height and width'),
    'tokens': (dict(patch=None, prefix=None), 'tokens as maps with patch=… and prefix=… beside its checkpoint'),
    'images': (dict(size=None, patch=None, prefix=None), 'it takes 64 x 64: write size=64 in the teacher'),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_a_sentence_while_building(name, scope, vit):
    changes, sentence = REFUSED[name]
    cfg = distiller('mmseg', vit | changes)
    if name == 'images':
        cfg['dry_run_size'] = 96
        cfg['student']['data_preprocessor']['size'] = (96, 96)
    scope('mmseg')
    with pytest.raises((ValueError, KeyError, TypeError, ModuleNotFoundError), match=re.escape(sentence)) as caught:
        build_model(cfg, 'mmseg')
    assert '\n' not in str(caught.value)


def test_another_size_than_the_samples_is_refused_where_they_are_read(scope, teacher_file):
    model, file = teacher_file('mmseg')
    cfg = distiller('mmseg', dict(model=model, checkpoint=str(file), scale=0.5), dict(tokens='auxiliary_head.conv_seg'))
    scope('mmseg')
    with pytest.raises(
        ValueError, match="'tokens': it is read with the loss, whose labels have the size of the student's"
    ):
        build_model(cfg, 'mmseg')
    scope('mmdet')
    with pytest.raises(ValueError, match='RetinaNet sees boxes in pixels of the images, so they keep the size'):
        FrozenTeacher(HOSTS['mmdet'][0](4), str(file), size=64)
    scope('mmseg')
    with pytest.raises(ValueError, match='mean belongs to module=…; a model= has its own; remove it'):
        FrozenTeacher(model, str(file), mean=MEAN)


def test_a_teacher_of_a_host_on_images_of_its_own_size(scope, teacher_file, tmp_path):
    model, file = teacher_file('mmpretrain')
    Config(dict(model=model, default_scope='mmpretrain', **HOSTS['mmpretrain'][3])).dump(tmp_path / 'teacher.py')
    teacher = dict(model=str(tmp_path / 'teacher.py'), checkpoint=str(file), size=96)
    cfg = distiller('mmseg', teacher, dict(tokens='backbone.layer4'))
    scope('mmseg')
    made = build_model(cfg, 'mmseg')
    made.init_weights()
    found = made.teacher(made.teacher_taps, ['tokens'], torch.randn(2, 3, 64, 64), None)
    assert found['tokens'].shape[2:] == (3, 3)


HOOKS = ['TeacherCheckHook', 'PredictionHook']


@pytest.mark.parametrize('hook', HOOKS)
def test_hooks_that_need_predictions_say_so_before_training(hook, scenes, tmp_path, vit):
    cfg = config('mmseg', scenes, tmp_path, distiller('mmseg', vit), 10, **validation(scenes))
    cfg.custom_hooks = [dict(type=f'lckd_mm.{hook}')]
    with pytest.raises(ValueError, match=f'{hook}: the teacher, VisionTransformer, is a torch module of no host'):
        run(cfg)
    assert not list(tmp_path.glob('iter_*.pth'))


def test_a_student_whose_preprocessor_does_not_tell(scope, vit):
    made = built('mmseg', scope, vit)
    with pytest.raises(ValueError, match='student: its BaseDataPreprocessor does not tell how it normalises images'):
        made.teacher.match_inputs(BaseDataPreprocessor())


def test_taps_of_a_module_s_own_outputs(scope, weights):
    """A dict, as from Hugging Face's models, is no tensor: the modules inside are tapped."""
    teacher = FrozenTeacher(module=Registers, checkpoint='as built', mean=MEAN, std=STD)
    taps = FeatureTaps(dict(tokens='model.norm'), 'teacher')
    teacher.load()
    taps.trace(teacher.model, lambda: teacher.model(torch.zeros(1, 3, 28, 28)))
    assert teacher(taps, ['tokens'], torch.zeros(2, 3, 28, 28), None)['tokens'].shape == (2, 7, 16)


@pytest.mark.parametrize('path', sorted((ROOT / 'configs/foundation').glob('*.py')), ids=lambda p: p.stem)
@pytest.mark.full
def test_a_step_with_a_foundation_model(path, tmp_path, monkeypatch):
    """With random weights of DINOv2's shapes, from a file; on images whose sides no patch divides."""
    monkeypatch.chdir(ROOT)
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    teacher = cfg.model.teacher
    net = teacher_net(teacher.model)[0]
    teacher.checkpoint = str(tmp_path / 'dinov2.pth')
    torch.save(dict(state_dict=net.state_dict()), teacher.checkpoint)
    cfg.model.student.backbone.init_cfg = None
    made = build_model(cfg.model, cfg.default_scope).train()
    made.teacher.load()
    size = 256, 320
    losses = made.loss(torch.randn(2, 3, *size), fabricate_samples(made.student, 2, size))
    assert made.teacher.images.sized(size) == (112, 140) and 0 < losses['loss_foundation'] < 10
    losses['loss_foundation'].backward()
    assert next(made.student.backbone.parameters()).grad is not None


@pytest.mark.parametrize(
    ('student_flips', 'flip', 'mean', 'expected'),
    [
        (True, None, [128.0, 128.0, 128.0], [200, 100, 10]),
        (True, None, [128.0], [200, 100, 10]),
        (False, True, [128.0], [200, 100, 10]),  # BGR, as from a file
        (False, False, [128.0], [10, 100, 200]),  # RGB, as from CIFAR's archive
        (False, None, [128.0], None),
    ],
)
def test_a_module_sees_rgb(student_flips, flip, mean, expected, scope):
    """A pixel with these values in the order of loading; the module normalises by 128 and 64."""
    from mmseg.models.data_preprocessor import SegDataPreProcessor

    sizes = dict(in_channels=3, out_channels=2, kernel_size=1)
    teacher = FrozenTeacher(
        module=nn.Conv2d, args=sizes, checkpoint='as built', mean=mean, std=[64.0] * len(mean), flip=flip
    )
    own = SegDataPreProcessor(mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0], bgr_to_rgb=student_flips, size=(2, 2))
    if expected is None:
        with pytest.raises(
            ValueError, match=r'it is not known whether the images of the student, .* write flip=True in the'
        ):
            teacher.match_inputs(own)
        return
    teacher.match_inputs(own)
    pixel = torch.tensor([10, 100, 200], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 2)
    inputs = own(dict(inputs=[pixel], data_samples=None), False)['inputs']
    seen = teacher.convert(inputs, None)[0, :, 0, 0] * 64 + 128
    torch.testing.assert_close(seen, torch.tensor(expected, dtype=torch.float32), atol=1e-3, rtol=0)


def test_what_a_pure_python_config_imports_is_passed_on(weights):
    from mmengine.config import ConfigDict
    from mmengine.config.lazy import LazyObject

    args = ConfigDict(patch=14, kinds=dict(norm=LazyObject('torch.nn')))
    seen = {}

    def make(patch, kinds):
        seen.update(kinds)
        return Registers(patch=patch)

    FrozenTeacher(module=make, args=args, checkpoint='as built', mean=MEAN, std=STD)
    assert seen['norm'] is nn and type(seen) is dict


def test_weights_in_half_precision_are_widened():
    teacher = FrozenTeacher(module=lambda: Registers().bfloat16(), checkpoint='asbuilt', mean=MEAN, std=STD)
    teacher.load()
    assert teacher.model.first.dtype == torch.float32
