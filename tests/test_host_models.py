"""The hosts' own configs, as they are published, as student and as teacher: one real step, and one prediction."""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from run_helpers import HOOK, config, count, run, scalars, scenes
from torch import nn

from lckd_mm.distillation import FrozenTeacher
from lckd_mm.hosts import (
    build_model,
    build_named_model,
    fabricate_samples,
    load_config,
    own_losses,
    read_model_config,
)

# Published at half a gigabyte, nearly all of it in two layers of 4096 that only take images of 224 x 224.
VGG_WITHOUT_ITS_CLASSIFIER = dict(
    backbone=dict(num_classes=-1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=512),
)
STAGES = [f'stage{i}' for i in range(1, 5)]
# mmdet's configs freeze the stem and stage1.
FROZEN = dict(on=STAGES[1:])
# name: what differs from one image size of 64, all stages of the preset, and nothing else; `model` overrides the model,
# `kd` names the taps of the class scores.
# The reduced suite takes every second one.
CASES = {
    'mmpretrain::resnet/resnet18_8xb32_in1k.py': dict(kd='logits'),
    'mmpretrain::seresnet/seresnet50_8xb32_in1k.py': dict(kd='logits'),
    'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py': dict(kd='logits'),
    'mmpretrain::vgg/vgg11bn_8xb32_in1k.py': dict(
        kd='logits', model=VGG_WITHOUT_ITS_CLASSIFIER, on=[*STAGES, 'stage5']
    ),
    # its windows need maps of 7 x 7 at the last stage
    'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py': dict(kd='logits', size=224),
    'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py': dict(kd='logits'),
    'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py': dict(kd='logits'),
    'mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py': dict(kd='logits'),
    'mmseg::mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py': dict(kd='logits'),
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py': dict(kd='logits'),
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': dict(kd='logits'),
    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py': FROZEN,
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': FROZEN,
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': FROZEN,
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py': FROZEN,
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py': {},
    'mmdet::atss/atss_r50_fpn_1x_coco.py': FROZEN,
    'mmdet::ssd/ssd300_coco.py': dict(size=300, on=[*STAGES, 'stage5', 'stage6']),
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py': dict(kd=['logits1', 'logits2', 'logits3']),
}


def published(name, size=64, **overrides):
    """The model of a host's config for images of one size, without a pretrained file, and its scope.

    ``overrides`` replace its neck or head, and are merged into any other part.
    """
    model, scope = read_model_config(name, 'test')
    model = forget_pretrained(model)
    if model.data_preprocessor.get('size') is not None:
        model.data_preprocessor.size = (size, size)
    for part, changes in overrides.items():
        model[part] = changes if part in ('neck', 'head') else {**model[part], **changes}
    return model, scope


def forget_pretrained(node):
    """A config dict without addresses of weights: nothing is downloaded."""
    if isinstance(node, dict):
        for key, value in node.items():
            weights = key == 'pretrained' or (key == 'init_cfg' and 'Pretrained' in str(value))
            node[key] = None if weights else forget_pretrained(value)
    elif isinstance(node, list):
        node[:] = [forget_pretrained(value) for value in node]
    return node


def distilled(model, scope, folder, taps, terms, size):
    """A Distiller whose teacher has the student's architecture and other weights; and the plain model of the host."""
    torch.manual_seed(1)
    plain = build_model(model, scope)
    plain.init_weights()
    awaken(plain)
    torch.save(dict(state_dict=plain.state_dict()), folder / 'teacher.pth')
    config = dict(
        type='lckd_mm.Distiller',
        student=model,
        teacher=dict(model=model, checkpoint=str(folder / 'teacher.pth')),
        taps=taps,
        terms=terms,
        dry_run_size=size,
    )
    torch.manual_seed(2)
    distiller = build_model(config, scope)
    distiller.init_weights()
    awaken(distiller.student)
    return distiller, plain


def awaken(model):
    """A fresh ResNet's blocks are the identity: until the last BatchNorm's weight leaves 0, no gradient is inside."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.any():
            nn.init.constant_(module.weight, 0.5)


def batch_of(model, size):
    torch.manual_seed(3)
    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=fabricate_samples(model, 2, (size, size)))


def lipschitz(on):
    return dict(loss=dict(type='lckd_mm.LipschitzLoss'), on=on, weight=0.5)


def check_prediction(samples, scope, size):
    assert len(samples) == 2
    for sample in samples:
        if scope == 'mmpretrain':
            assert type(sample).__name__ == 'DataSample'
            assert sample.pred_score.sum().item() == pytest.approx(1, abs=1e-4)
        elif scope == 'mmseg':
            assert type(sample).__name__ == 'SegDataSample' and sample.pred_sem_seg.shape == (size, size)
        else:
            assert type(sample).__name__ == 'DetDataSample'
            assert sample.pred_instances.bboxes.shape == (len(sample.pred_instances.scores), 4)


def early_weight(model):
    """The first convolution of the backbone that is trained."""
    return next(p for p in model.backbone.parameters() if p.dim() == 4 and p.requires_grad)


def check_a_step(distiller, plain, scope, size, predicts=True):
    """The Lipschitz term's gradient in the student, one step, the state in the plain model, and one prediction."""
    # mmdet's resizing of whole batches asks for the iteration.
    MessageHub.get_current_instance().update_info('iter', 0)
    distiller.train()
    weight = early_weight(distiller)
    losses = distiller(**distiller.data_preprocessor(batch_of(distiller.student, size), True), mode='loss')
    (gradient,) = torch.autograd.grad(losses['loss_lipschitz'], weight)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    before = weight.detach().clone()
    optimizer = dict(type='SGD', lr=1e-3)
    wrapper = build_optim_wrapper(distiller, dict(type='OptimWrapper', optimizer=optimizer))
    logged = distiller.train_step(batch_of(distiller.student, size), wrapper)
    assert set(distiller.terms) < set(logged)
    assert all(torch.isfinite(value).all() for value in logged.values())
    assert logged['loss_lipschitz'] > 0
    assert not torch.equal(weight, before)
    plain.load_state_dict(distiller.state_dict(), strict=True)
    assert torch.equal(early_weight(plain), weight)
    distiller.eval()
    if not predicts:
        # mmdet 3.3.0's own fault, its issue 11063: the plain model cannot either.
        for model in (distiller, plain.eval()):
            with pytest.raises(AttributeError, match="'SSDHead' object has no attribute 'loss_cls'"):
                model.test_step(batch_of(plain, size))
        return
    check_prediction(distiller.test_step(batch_of(plain, size)), scope, size)


@pytest.mark.parametrize('name', count(list(CASES), list(CASES)[::2]))
def test_a_published_config_trains_a_step_and_predicts(name, tmp_path):
    case = CASES[name]
    size, kd = case.get('size', 64), case.get('kd')
    terms = dict(loss_lipschitz=lipschitz(case.get('on', STAGES)))
    if kd:
        terms['loss_kd'] = dict(loss=dict(type='lckd_mm.KDLoss'), on=kd, weight=1.0)
    model, scope = published(name, size, **case.get('model', {}))
    with DefaultScope.overwrite_default_scope(scope):
        distiller, plain = distilled(model, scope, tmp_path, ['backbone', 'logits'] if kd else 'backbone', terms, size)
        check_a_step(distiller, plain, scope, size, predicts='ssd300' not in name)


def test_levels_of_a_pyramid_are_matched_through_the_backbone(tmp_path):
    size, levels = 128, [f'p{i}' for i in range(3, 8)]
    model, scope = published('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', size)
    terms = dict(
        loss_lipschitz=lipschitz(levels), loss_kd=dict(loss=dict(type='lckd_mm.KDLoss'), on='logits', weight=1.0)
    )
    with DefaultScope.overwrite_default_scope(scope):
        distiller, plain = distilled(model, scope, tmp_path, ['neck', 'logits'], terms, size)
        sides = [distiller.student_taps.traces[level].shapes[0][-1] for level in levels]
        assert sides == [16, 8, 4, 2, 1]
        check_a_step(distiller, plain, scope, size)


# ---- what hosts reach into the model for


class Switches(Hook):
    """The student's and the teacher's ``use_l1`` as each epoch begins."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            model = runner.model
            self.seen.append((model.student.bbox_head.use_l1, model.teacher.model.bbox_head.use_l1))


def test_yolox_switches_its_mode_on_the_student(scenes, tmp_path):
    neck = dict(type='YOLOXPAFPN', in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1)
    narrow = dict(backbone=dict(widen_factor=0.125), neck=neck, bbox_head=dict(in_channels=32, feat_channels=32))
    model, _ = published('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', **narrow)
    hooks = load_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py').custom_hooks
    assert hooks[0].type == 'YOLOXModeSwitchHook'
    hooks[0].num_last_epochs = 0
    torch.manual_seed(1)
    torch.save(dict(state_dict=build_model(model, 'mmdet').state_dict()), tmp_path / 'teacher.pth')
    stages = {f'stage{i}': f'backbone[{i}]' for i in range(3)}
    distiller = dict(
        type='lckd_mm.Distiller',
        student=model,
        teacher=dict(model=model, checkpoint=str(tmp_path / 'teacher.pth')),
        taps=stages,
        terms=dict(loss_lipschitz=lipschitz(list(stages))),
        dry_run_size=64,
    )
    cfg = config('mmdet', scenes, tmp_path / 'run', distiller, custom_hooks=hooks)
    plain = cfg.train_dataloader.dataset
    mosaic = [dict(type='Mosaic', img_scale=(64, 64)), dict(type='Resize', scale=(64, 64))]
    plain.pipeline = plain.pipeline[:2]
    cfg.train_dataloader.dataset = dict(
        type='MultiImageMixDataset', dataset=plain, pipeline=[*mosaic, dict(type='PackDetInputs')]
    )
    cfg.train_dataloader.update(batch_size=4, sampler=dict(type='DefaultSampler', shuffle=True))
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2)
    cfg.default_hooks = dict(logger=dict(type='LoggerHook', interval=1), distillation=HOOK)
    cfg.log_processor = dict(window_size=1)
    cfg.param_scheduler = None
    switches = Switches()
    run(cfg, switches)
    assert switches.seen == [(False, False), (True, False)]
    logged = [('loss_l1' in row) for row in scalars(tmp_path / 'run') if 'loss_lipschitz' in row]
    assert logged == [False] * 4 + [True] * 4


# config: taps, image size, and changes that make it small but keep the depth that the constructor counts
DECAYED = {
    'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py': (('backbone[0]', 'backbone[1]'), 64, {}),
    # 12 layers of 48 in place of 768
    'mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py': (
        ('backbone[0]', 'backbone[1]'),
        64,
        dict(
            backbone=dict(embed_dims=48, num_heads=4, img_size=(64, 64)),
            neck=dict(type='Feature2Pyramid', embed_dim=48, rescales=[4, 2, 1, 0.5]),
            decode_head=dict(in_channels=[48] * 4),
            auxiliary_head=dict(in_channels=48),
        ),
    ),
    # 24 blocks as published, of 16 to 128 channels in place of 128 to 1024
    'mmpretrain::simmim/benchmarks/swin-base-w6_8xb256-coslr-100e_in1k-192px.py': (
        ('backbone.stages.2[0]', 'backbone[0]'),
        192,
        dict(
            backbone=dict(arch=dict(embed_dims=16, depths=[2, 2, 18, 2], num_heads=[1, 2, 4, 8])),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=128),
        ),
    ),
}


@pytest.mark.parametrize('name', DECAYED)
def test_a_layer_decay_constructor_gives_the_student_the_rates_it_has_alone(name, tmp_path):
    (front, back), size, changes = DECAYED[name]
    model, scope = published(name, size, **changes)
    # with connectors, whose parameters stand beside the student's
    term = dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='back', connector=dict(type='lckd_mm.ConvBN'))
    terms = dict(loss_lipschitz=lipschitz(['front', 'back']), loss_fitnets=term)
    # in float32, since mixed precision asks for a GPU
    optim = {**load_config(name).optim_wrapper, 'type': 'OptimWrapper', 'clip_grad': None}
    optim = {key: value for key, value in optim.items() if key not in ('loss_scale', 'dtype')}
    with DefaultScope.overwrite_default_scope(scope):
        distiller, plain = distilled(model, scope, tmp_path, dict(front=front, back=back), terms, size)
        rates, alone = rates_of(distiller.student, distiller, optim), rates_of(plain, plain, optim)
    connectors = rates.pop(None)
    assert rates == alone
    by_depth = {rate for part, (rate, _) in rates.items() if part.startswith('backbone')}
    assert len(by_depth) >= 6 and min(by_depth) < max(by_depth) / 2
    # those of a head
    assert connectors[0] == max(rate for rate, _ in rates.values()) == optim['optimizer']['lr']


def rates_of(named, model, optim):
    """Learning rate and weight decay of each parameter, by its name in ``named``; None stands for any other."""
    names = {p: name for name, p in named.named_parameters()}
    groups = build_optim_wrapper(model, copy.deepcopy(optim)).optimizer.param_groups
    return {names.get(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']}


@pytest.mark.parametrize(
    'name, reason',
    [
        ('mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py', 'MAE pretrains a backbone'),
        (
            'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
            'SoftTeacher is a student and a teacher itself.*its `detector`',
        ),
        ('mmdet::mask2former_vis/mask2former_r50_8xb2-8e_youtubevis2019.py', 'takes videos.*give a detector'),
    ],
)
def test_models_that_do_not_take_images_are_refused(name, reason):
    model, scope = read_model_config(name, 'test')
    with torch.device('meta'), pytest.raises(TypeError, match=f'^student: .*{reason}'):
        build_named_model(model, 'student', scope)


def test_a_model_that_takes_text_is_refused():
    from mmpretrain.models import BaseClassifier

    class Captioner(BaseClassifier):
        def forward(self, images, data_samples=None, mode='tensor'): ...

    with pytest.raises(TypeError, match=r'^teacher: Captioner takes text beside images'):
        build_named_model(dict(type=Captioner), 'teacher')


def test_a_pretrained_backbone_teaches_from_the_checkpoint_of_its_pretraining(tmp_path):
    backbone = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4)
    pretraining = dict(type='SimCLR', backbone=backbone, head=dict(
        type='ContrastiveHead', loss=dict(type='CrossEntropyLoss')))  # fmt: skip
    with pytest.raises(TypeError, match=r'SimCLR pretrains a backbone.*ImageClassifier.*allow=\['):
        build_named_model(pretraining, 'teacher', 'mmpretrain')
    state = build_model(pretraining, 'mmpretrain').state_dict() | {'neck.fc.weight': torch.ones(2)}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    model = dict(type='mmpretrain.ImageClassifier', backbone=backbone)
    teacher = FrozenTeacher(model, str(tmp_path / 'a.pth'), allow=['^(?!backbone)'])
    teacher.load()
    assert all(torch.equal(v, state[k]) for k, v in teacher.model.state_dict().items())


def test_a_classifier_without_a_head_is_no_student():
    net = build_model(dict(type='ImageClassifier', backbone=dict(type='LeNet5')), 'mmpretrain')
    with pytest.raises(ValueError, match=r'has no head, .* such as head=.*as a teacher it needs none'):
        own_losses(net, torch.zeros(1, 1, 32, 32), fabricate_samples(net, 1, (32, 32)))


@pytest.mark.parametrize(
    'name, masks, semantic, proposals',
    [
        ('rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', True, None, False),
        ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', False, None, False),
        ('htc/htc_r50_fpn_1x_coco.py', True, (1, 8, 12), False),
        ('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', True, (1, 64, 96), False),
        ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py', False, None, True),
    ],
)
def test_made_up_samples_have_what_a_detector_reads_for_its_loss(name, masks, semantic, proposals):
    model, scope = read_model_config(f'mmdet::{name}', 'test')
    with torch.device('meta'):
        net = build_model(model, scope)
    (sample,) = fabricate_samples(net, 1, (64, 96))
    assert ('masks' in sample.gt_instances) == masks
    assert (tuple(sample.gt_sem_seg.sem_seg.shape) if 'gt_sem_seg' in sample else None) == semantic
    assert ('proposals' in sample) == proposals
