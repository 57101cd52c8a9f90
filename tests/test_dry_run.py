"""What is learnt of a net while a model is built: passes, sizes, channels; and what the sentences say."""

import random

import numpy as np
import pytest
import torch
from run_helpers import HOSTS, classifier, detector, segmentor
from small_nets import carafe, dino, mask2former, of_one_size, pidnet

from lckd_mm.distillation import Distiller
from lckd_mm.distillation.dry_run import MadeUpImage, trace_taps
from lckd_mm.hosts import build_model, fabricate_samples, image_channels, load_config, run_once
from lckd_mm.taps import FeatureTaps, Pass

TRAINING = Pass('loss', training=True)
FITNETS = dict(type='lckd_mm.FitNetsLoss')


@pytest.fixture
def distilled(scope, save_teacher, tmp_path):
    """``distilled(host, student, teacher, …)``: a Distiller in training, with a teacher of random weights."""

    def make(host, student, teacher=None, **config):
        scope(host)
        file = save_teacher(tmp_path / 'teacher.pth', teacher or student, host)
        model = Distiller(student=student, teacher=dict(model=teacher or student, checkpoint=file), **config)
        model.init_weights()
        return model.train()

    return make


# ---- passes


@pytest.mark.parametrize(
    ('host', 'net', 'taps', 'passes'),
    [
        (
            'mmseg',
            mask2former,
            dict(stage='backbone.layer2', pixels='decode_head.pixel_decoder[0]', masks='decode_head.mask_embed#-1'),
            dict(stage={'tensor', 'loss'}, pixels={'loss', 'predict'}, masks={'loss', 'predict'}),
        ),
        ('mmseg', lambda: segmentor(4), dict(aux='auxiliary_head.conv_seg'), dict(aux={'loss'})),
        (
            'mmseg',
            lambda: segmentor(4),
            dict(aux='auxiliary_head.conv_seg', logits='decode_head.conv_seg'),
            dict(aux={'loss'}, logits={'tensor', 'loss'}),
        ),
        ('mmseg', pidnet, dict(p='decode_head.p_cls_seg'), dict(p={TRAINING})),
        (
            'mmdet',
            dino,
            dict(noise='dn_query_generator.label_embedding', neck='neck[0]', scores='bbox_head.cls_branches.0'),
            dict(noise={TRAINING}, neck={'tensor', TRAINING}, scores={'tensor'}),
        ),
    ],
)
def test_each_tap_knows_the_passes_that_fire_it(scope, host, net, taps, passes):
    scope(host)
    model = build_model(net()).eval()
    model.init_weights()  # without it DINO's level_embed is unset memory, which may hold nan
    state = {key: value.clone() for key, value in model.state_dict().items()}
    taps = FeatureTaps(taps, 'teacher')
    trace_taps(taps, model, MadeUpImage.of('test', 64, [model]))
    expected = {name: {Pass(one) if isinstance(one, str) else one for one in of} for name, of in passes.items()}
    assert {name: set(trace.passes) for name, trace in taps.traces.items()} == expected
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(m.training for m in model.modules())


def test_a_teachers_auxiliary_head_is_read_in_one_pass_that_leaves_no_trace(distilled):
    # The teacher has fewer classes than the labels of the student's data.
    taps = dict(aux='auxiliary_head.conv_seg', logits='decode_head.conv_seg', stage3='backbone.layer3')
    terms = dict(loss_a=dict(loss=FITNETS, on=['stage3']))
    model = distilled('mmseg', segmentor(4), segmentor(4, classes=3), taps=taps, terms=terms)
    teacher, images = model.teacher.model, torch.randn(2, 3, 64, 64)
    samples = fabricate_samples(model.student, 2, (64, 64))
    for sample in samples:
        sample.gt_sem_seg.data = torch.full((1, 64, 64), 10)
    state = {key: value.clone() for key, value in teacher.state_dict().items()}
    numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    passes = []
    handle = teacher.backbone.register_forward_hook(lambda *_: passes.append(1))
    found = model.teacher(model.teacher_taps, list(taps), images, samples)
    handle.remove()
    assert len(passes) == 1
    with torch.no_grad():
        stages = teacher.extract_feat(model.teacher.convert(images, samples))
        assert torch.equal(found['aux'], teacher.auxiliary_head(stages))
        assert torch.equal(found['logits'], teacher.decode_head(stages))
    assert all(torch.equal(value, state[key]) for key, value in teacher.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers[0]) and random.getstate() == numbers[1]
    assert (np.random.get_state()[1] == numbers[2]).all()
    assert all(sample.gt_sem_seg.data.eq(10).all() for sample in samples)
    assert not any(module.training for module in teacher.modules())


def test_a_teachers_head_of_training_alone(distilled):
    term = dict(loss=dict(type='lckd_mm.KDLoss'), student='logits', teacher='p')
    model = distilled(
        'mmseg', segmentor(4, classes=19), pidnet(), student_taps=dict(logits='decode_head.conv_seg'),
        teacher_taps=dict(p='decode_head.p_cls_seg'), terms=dict(loss_kd=term),
    )  # fmt: skip
    teacher, images = model.teacher.model, torch.randn(2, 3, 64, 64)
    samples = fabricate_samples(model.student, 2, (64, 64))
    assert model(images, samples, mode='loss')['loss_kd'].item() > 0
    found = model.teacher(model.teacher_taps, ['p'], images, samples)['p']
    # With the statistics of evaluation.
    with torch.no_grad():
        teacher.backbone.training = True
        features = teacher.backbone(model.teacher.convert(images, samples))[0]
        teacher.backbone.training = False
        head = teacher.decode_head
        assert torch.equal(found, head.p_head(features, head.p_cls_seg))


@pytest.mark.parametrize('taps', [dict(f='backbone.layer4'), dict(f='decode_head.pixel_decoder[0]')])
def test_a_net_without_a_plain_forward_teaches_and_learns(distilled, taps):
    model = distilled('mmseg', mask2former(), terms=dict(loss_f=dict(loss=FITNETS, on='f')), taps=taps)
    losses = model(torch.randn(2, 3, 64, 64), fabricate_samples(model.student, 2, (64, 64)), mode='loss')
    assert losses['loss_f'].item() > 0
    model.parse_losses(losses)[0].backward()


def test_a_head_that_a_plain_forward_runs_twice_is_compared_call_by_call(distilled):
    """YOLACT's plain forward does so, and its training does not."""
    from mmdet.models import RetinaNet

    class Twice(RetinaNet):
        def _forward(self, *args):
            super()._forward(*args)
            return super()._forward(*args)

    net, term = detector(4) | dict(type=Twice), dict(loss=dict(type='lckd_mm.KDLoss'), on='logits')
    model = distilled('mmdet', net, taps=dict(logits='bbox_head.retina_cls#*'), terms=dict(loss_kd=term))
    trace = model.teacher_taps.traces['logits']
    assert (trace.calls, len(trace.shapes), trace.passes) == (4, 4, (Pass('loss'),))
    losses = model(torch.randn(2, 3, 64, 64), fabricate_samples(model.student, 2, (64, 64)), mode='loss')
    assert losses['loss_kd'].item() > 0


def test_a_tap_that_never_fires_in_a_net_without_a_plain_forward(distilled):
    taps = dict(f='decode_head.decoder_input_projs')
    with pytest.raises(ValueError, match=r"teacher tap 'f': 'decode_head.decoder_input_projs' never fires"):
        distilled('mmseg', mask2former(), terms=dict(loss_f=dict(loss=FITNETS, on='f')), taps=taps)


def test_a_net_whose_operators_the_cpu_lacks(distilled):
    """CARAFE has no kernel for the CPU: the backbone is read; what lies behind waits for the device of training."""
    config = dict(student=detector(8), teacher=carafe(), dry_run_size=64)
    term = dict(loss=FITNETS, on='f')
    model = distilled('mmdet', **config, taps=dict(f='backbone.layer4'), terms=dict(loss_f=term))
    samples = fabricate_samples(model.student, 2, (64, 64))
    assert 'loss_f' in model(torch.randn(2, 3, 64, 64), samples, mode='loss')

    config['taps'] = dict(f='neck[0]')
    conv = dict(type='lckd_mm.ConvBN')
    with pytest.raises(ValueError, match=r"teacher tap 'f' .* lies behind an operator .* type them, .*out_channels=\["):
        distilled('mmdet', **config, terms=dict(loss_f=dict(term, connector=conv)))
    model = distilled('mmdet', **config, terms=dict(loss_f=dict(term, connector=conv | dict(out_channels=[8]))))
    with pytest.raises(ValueError, match=r'teacher: RetinaNet fails .*cpu.*: train on a GPU'):
        model(torch.randn(2, 3, 64, 64), samples, mode='loss')


def test_a_loss_that_reruns_the_nets_is_refused_where_no_plain_forward_reaches(distilled):
    term = dict(loss=dict(type='lckd_mm.JacobianLoss'), on='aux')
    with pytest.raises(ValueError, match=r"JacobianLoss runs the nets again .* student tap 'aux' fires only with them"):
        distilled('mmseg', segmentor(4), taps=dict(aux='auxiliary_head.conv_seg'), terms=dict(loss_j=term))


# ---- sizes


@pytest.mark.parametrize(
    ('student', 'teacher', 'size', 'way'),
    [
        # The sentence's way is followed below.
        (segmentor(4, classes=4), of_one_size(), None, 'it sees the images of the student, and 96 x 96 works for both'),
        (segmentor(4, classes=4), of_one_size(), 64, '96 x 96 works for both: train .*, and set dry_run_size=96'),
        (of_one_size(64), of_one_size(), None, r'student: .* takes 96 x 96: set the size of its data_preprocessor'),
        (of_one_size(), of_one_size(), 64, r'student: .* set dry_run_size=96, which works'),
    ],
)
def test_a_size_is_named_where_it_was_tried_and_works(distilled, student, teacher, size, way):
    logits = dict(logits='decode_head.conv_seg')
    term = dict(loss=dict(type='lckd_mm.KDLoss'), on='logits', teacher_connector=dict(type='lckd_mm.MatchSize'))
    config = dict(taps=logits, terms=dict(loss_kd=term))
    if 'student' in way and 'images of' not in way:
        teacher = segmentor(4, classes=4)
    with pytest.raises(ValueError, match=way):
        distilled('mmseg', student, teacher, dry_run_size=size, **config)
    student['data_preprocessor']['size'] = (96, 96)
    model = distilled('mmseg', student, teacher, dry_run_size=96 if size else None, **config)
    samples = fabricate_samples(model.student, 2, (96, 96))
    assert 'loss_kd' in model(torch.randn(2, 3, 96, 96), samples, mode='loss')
    if teacher['backbone']['type'] == 'BEiT':
        with pytest.raises(ValueError, match=r"teacher: EncoderDecoder fails on the student's images, of 64 x 64"):
            model.teacher(model.teacher_taps, ['logits'], torch.randn(2, 3, 64, 64), samples)


def test_the_made_up_image_is_padded_as_those_of_training_are(scope):
    """NAS-FPN adds maps of neighbouring levels, which fit on images of a multiple of 128."""
    scope('mmdet')
    net = detector(8)
    net['data_preprocessor'].update(pad_size_divisor=128)
    assert MadeUpImage.of('Distiller', None, [build_model(net)]).size == (256, 256)


def test_a_net_that_another_size_changes_is_left_as_it_was(distilled):
    """EVA-02 replaces its positions, which are in its checkpoints, in a forward pass of another size."""

    def eva02(width):
        arch = dict(num_layers=1, embed_dims=width, num_heads=2, feedforward_channels=width)
        backbone = dict(type='ViTEVA02', arch=arch, img_size=56, patch_size=14)
        return dict(
            type='ImageClassifier', backbone=backbone, head=dict(type='LinearClsHead', in_channels=width, num_classes=2)
        )

    term = dict(loss=dict(type='lckd_mm.KDLoss'), on='logits')
    model = distilled('mmpretrain', eva02(16), eva02(32), taps='logits', terms=dict(loss_kd=term), dry_run_size=28)
    rope = model.student.backbone.rope
    assert rope.patch_resolution == (4, 4) and rope.freqs_cos.shape == (16, 8)
    for size in (28, 56):
        samples = fabricate_samples(model.student, 2, (size, size))
        assert 'loss_kd' in model(torch.randn(2, 3, size, size), samples, mode='loss')


# ---- channels


def with_channels(host, channels, width=4):
    net = HOSTS[host][0](width)
    net['backbone']['in_channels'] = channels
    mean = dict(mean=[120.0] * channels, std=[60.0] * channels)
    if host == 'mmpretrain':
        net['data_preprocessor'] = dict(type='ClsDataPreprocessor', **mean)
    elif host == 'mmdet':  # its preprocessor takes one number or three
        net['data_preprocessor'].update(mean=[120.0], std=[60.0], bgr_to_rgb=False)
    else:
        net['data_preprocessor'].update(**mean, bgr_to_rgb=False)
    return net


@pytest.mark.parametrize('channels', [1, 4, 6])
@pytest.mark.parametrize('host', HOSTS)
def test_images_of_any_number_of_channels(distilled, host, channels):
    term = dict(loss=FITNETS, on='f', connector=dict(type='lckd_mm.ConvBN'))
    teacher = with_channels(host, channels, 8)
    teacher['data_preprocessor']['mean'] = [100.0] * len(teacher['data_preprocessor']['mean'])
    nets = with_channels(host, channels), teacher
    model = distilled(host, *nets, taps=dict(f='backbone.layer2'), terms=dict(loss_f=term), dry_run_size=64)
    assert image_channels(model.student) == channels
    images, samples = torch.randn(2, channels, 64, 64), fabricate_samples(model.student, 2, (64, 64))
    assert model(images, samples, mode='loss')['loss_f'].item() > 0
    torch.testing.assert_close(model.teacher.convert(images, None), images + 1 / 3)


def test_a_teacher_of_other_channels_is_told_so(distilled):
    student = with_channels('mmseg', 1)
    config = dict(taps=dict(f='backbone.layer2'), terms=dict(loss_f=dict(loss=FITNETS, on='f')))
    with pytest.raises(ValueError, match='takes images with 3 channels, and it sees those of the student, with 1'):
        distilled('mmseg', student, segmentor(4), **config)


@pytest.mark.parametrize(
    ('config', 'channels'),
    [
        (lambda: load_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py').model, 3),  # Focus: twelve channels inside
        (lambda: load_config('mmpretrain::lenet/lenet5_mnist.py').model, 1),
        (lambda: classifier(4) | dict(backbone=dict(classifier(4)['backbone'], in_channels=2)), 2),
        (lambda: classifier(160) | dict(backbone=dict(type='MobileNetV2')), 3),  # counts its own in_channels
    ],
)
def test_channels_of_a_first_layer(scope, config, channels):
    cfg = config()
    scope('mmdet' if 'bbox_head' in cfg else 'mmpretrain')
    model = build_model(cfg)
    assert image_channels(model) == channels
    run_once(model, (32, 32), 'tensor')
