"""Terms that read further taps of the teacher (`given`), or run a part of it on the student's features (`reuse`)."""

import pytest
import torch
from run_helpers import HOOK, classifier, config, detector, run, scalars, scenes, segmentor
from test_recipes import segformer
from torch import nn

from lckd_mm.functional import kd_divergence
from lckd_mm.hosts import build_model, fabricate_samples
from lckd_mm.losses import Loss

FIT = dict(type='lckd_mm.FitNetsLoss')
TOWER = dict(tower='bbox_head.cls_convs.0.activate@in#*', logits='bbox_head.retina_cls#*', p3='neck[0]')


class Weighted(Loss):
    """Squared distance weighted by the teacher's class scores; keeps what it is given."""

    def forward(self, student, teacher, scores, student_scores=None, limit=None):
        self.seen = [*getattr(self, 'seen', []), (scores, student_scores)]
        return (scores.sigmoid().amax(1, keepdim=True) * (student - teacher).square()).mean()


def towers(width, **kinds):
    net = detector(width)
    net['bbox_head'].update(stacked_convs=2, **kinds)
    return net


def model(tmp_path, terms, taps=None, student=None, teacher=None, scope='mmdet', **extra):
    teacher, path = teacher or towers(8), tmp_path / 'teacher.pth'
    torch.manual_seed(1)
    net = build_model(teacher, scope)
    if hasattr(net, 'level_embed'):  # left as the memory was until this
        net.init_weights()
    torch.save(dict(state_dict=net.state_dict()), path)
    return dict(
        type='lckd_mm.Distiller', student=student or towers(4), taps=taps or TOWER, terms=terms, dry_run_size=64,
        teacher=dict(model=teacher, checkpoint=str(path)), **extra,
    )  # fmt: skip


def built(tmp_path, terms, taps=None, student=None, teacher=None, scope='mmdet', **extra):
    distiller = build_model(model(tmp_path, terms, taps, student, teacher, scope, **extra), scope)
    distiller.init_weights()
    return distiller


def batch(distiller, size=64, count=2):
    torch.manual_seed(2)
    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in range(count)]
    samples = fabricate_samples(distiller.student, count, (size, size))
    return distiller.data_preprocessor(dict(inputs=images, data_samples=samples), True)


# ---- given


def test_a_loss_of_pairs_is_given_the_teacher_s_scores_of_its_level(tmp_path):
    taps = dict(tower=TOWER['tower'], logits=TOWER['logits'])
    terms = dict(loss_w=dict(loss=dict(type=Weighted), on='tower', given=dict(scores='logits')))
    distiller = built(tmp_path, terms, taps)
    loss, data = distiller.terms['loss_w'].loss, batch(distiller)
    loss.seen = []
    value = distiller.train()(**data, mode='loss')['loss_w']
    with torch.no_grad(), distiller.teacher_taps.record(distiller.teacher.model) as t:
        distiller.teacher.model(data['inputs'], data['data_samples'], mode='tensor')
    torch.testing.assert_close([scores for scores, _ in loss.seen], t['logits'])
    for (_, own), like in zip(loss.seen, t['logits']):
        assert own.shape == like.shape and own.requires_grad and not torch.equal(own, like)
    value.backward()
    assert distiller.student.bbox_head.cls_convs[0].conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('config', 'error', 'says'),
    [
        (dict(given=dict(scores='logit')), KeyError, "unknown teacher tap 'logit', the taps are 'tower', 'logits'"),
        ({}, KeyError, r"Weighted needs given=dict\(scores=TAP\), the teacher's tap that holds its scores"),
        (dict(given=dict(score='logits')), KeyError, "Weighted does not take 'score', it takes 'scores', 'limit'"),
        (dict(given='logits'), TypeError, r"given must be like dict\(scores='logits'\), got 'logits'"),
        (dict(given=dict(scores='p3')), ValueError, '1 tensors of scores for 4 of the student'),
        (dict(loss=FIT, given=dict(scores='logits')), KeyError, "FitNetsLoss does not take 'scores', it takes nothing"),
        (dict(reuse='tower', teacher='p3'), ValueError, "in several: 'tower' in 'bbox_head', 'p3' in 'neck'"),
        (dict(loss=FIT, reuse='towers', teacher='logits'), KeyError, "unknown teacher tap 'towers', the taps are"),
        (dict(loss=FIT, reuse=['tower', 'logits'], teacher='logits'), ValueError, '1 student taps, but 2 teacher taps'),
        (dict(loss=FIT, reuse='tower', teacher='logits', classes='by name'), ValueError, 'compared .*; remove classes'),
        (
            dict(loss=FIT, reuse='tower', teacher='logits', teacher_connector=dict(type='lckd_mm.MatchSize')),
            ValueError,
            'remove teacher_connector',
        ),
        (dict(loss=FIT, reuse='p3', teacher='logits'), ValueError, "'p3' in 'neck', 'logits' in 'bbox_head'"),
        (
            dict(loss=dict(type='lckd_mm.JacobianLoss'), reuse='tower', teacher='logits'),
            ValueError,
            "JacobianLoss runs the nets again, so it cannot reuse 'bbox_head'",
        ),
    ],
)
def test_a_wrong_key_is_refused_while_the_model_is_built(tmp_path, config, error, says):
    terms = dict(loss_w=dict(dict(loss=dict(type=Weighted), on='tower'), **config))
    with pytest.raises(error, match=f"term 'loss_w'.*{says}"):
        built(tmp_path, terms)


def test_other_widths_and_sizes_are_refused_with_the_connectors_that_help(tmp_path):
    student = towers(4, feat_channels=6)
    terms = dict(loss_cross=dict(loss=FIT, student='tower', reuse='tower', teacher='logits'))
    with pytest.raises(ValueError, match=r"reuse at tap 'tower': student .*dict\(type='lckd_mm.ConvBN'\)"):
        built(tmp_path, terms, student=student)
    terms['loss_cross']['connector'] = dict(type='lckd_mm.ConvBN')
    distiller = built(tmp_path, terms, student=student)
    connector = distiller.terms['loss_cross'].connectors[0][0]
    assert (connector.in_channels, connector.out_channels) == (6, 8)


def test_a_term_with_a_connector_is_told_to_add_the_other(tmp_path):
    wide = detector(8)
    wide['neck']['out_channels'] = wide['bbox_head']['in_channels'] = 12
    taps = dict(deep='backbone.layer3')
    terms = dict(loss_fit=dict(loss=FIT, on='deep', connector=dict(type='lckd_mm.ConvBN')))
    with pytest.raises(ValueError, match=r"type='lckd_mm.MatchSize'\) resizes \(after ConvBN, in a list\)"):
        built(tmp_path, terms, taps, detector(4), wide, teacher_taps=dict(deep='backbone.layer2'))


# ---- reuse


def cross(**extra):
    return dict(loss_cross=dict(loss=FIT, student='tower', reuse='tower', teacher='logits', **extra))


def test_the_teacher_s_own_features_give_its_own_scores(tmp_path):
    """With the teacher's weights in the student, both maps agree, and the loss is 0."""
    net = towers(8)
    distiller = built(tmp_path, cross(), student=net, teacher=net)
    data = batch(distiller)
    with torch.no_grad():
        distiller.student.load_state_dict(distiller.teacher.model.state_dict())
        distiller.teacher.model.eval()
        distiller.student.eval()
        # Both nets run with the same statistics.
        assert distiller.loss(**data)['loss_cross'] == 0
        distiller.student.bbox_head.cls_convs[0].conv.weight.mul_(1.1)
        assert distiller.loss(**data)['loss_cross'] > 0


def test_the_student_s_features_run_through_the_rest_of_the_teacher_s_head(tmp_path):
    distiller = built(tmp_path, cross()).train()
    data = batch(distiller)
    with distiller.student_taps.record(distiller.student, ['tower']) as s:
        distiller.student(**data, mode='loss')
    head = distiller.teacher.model.bbox_head
    expected = [head.retina_cls(head.cls_convs[1](head.cls_convs[0].activate(x.clone()))) for x in s['tower']]
    with torch.no_grad(), distiller.teacher_taps.record(distiller.teacher.model, ['logits']) as t:
        distiller.teacher.model(**data, mode='tensor')
    wanted = sum((a - b).square().mean() for a, b in zip(expected, t['logits'])) / len(expected)
    before = {key: value.clone() for key, value in distiller.teacher.model.state_dict().items()}
    # BatchNorm's running statistics have moved, its batch statistics have not.
    value = distiller.loss(**data)['loss_cross']
    torch.testing.assert_close(value, wanted)
    distiller.zero_grad()
    value.backward()
    grads = {name: p.grad for name, p in distiller.student.named_parameters() if p.grad is not None}
    assert grads['bbox_head.cls_convs.0.conv.weight'].abs().sum() > 0
    assert 'bbox_head.retina_cls.weight' not in grads or not grads['bbox_head.retina_cls.weight'].any()
    assert all(p.grad is None for p in distiller.teacher.model.parameters())
    for key, tensor in distiller.teacher.model.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert not distiller.teacher._calls
    assert all('forward' not in vars(m) for m in distiller.teacher.model.modules())


def test_it_runs_under_autocast_in_the_precision_of_the_teacher_s_pass(tmp_path):
    distiller = built(tmp_path, cross()).train()
    data = batch(distiller)
    plain = distiller.loss(**data)['loss_cross'].item()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = distiller.loss(**data)['loss_cross']
    assert value.dtype == torch.float32 and value.item() == pytest.approx(plain, rel=0.1)
    value.backward()


@pytest.mark.parametrize(
    ('net', 'scope', 'taps', 'keys'),
    [
        (classifier, 'mmpretrain', dict(pooled='neck[0]', into='head.fc@in', logits='head.fc'), dict(student='pooled')),
        (segmentor, 'mmseg', dict(into='decode_head.conv_seg@in', logits='decode_head.conv_seg'), dict(student='into')),
        (detector, 'mmdet', dict(into='bbox_head.cls_convs.0.activate@in#*', logits='bbox_head.retina_cls#*'), {}),
    ],
)
def test_every_host_s_head_runs_on_the_student_s_features(tmp_path, net, scope, taps, keys):
    """As SRRL does with the classifier: the student's feature, mapped to the teacher's width, through its layers."""
    connector = dict(type='lckd_mm.Linear' if scope == 'mmpretrain' else 'lckd_mm.ConvBN')
    term = dict(dict(loss=FIT, student='into', reuse='into', teacher='logits', connector=connector), **keys)
    extra = {}
    if scope == 'mmpretrain':
        extra['data_preprocessor'] = dict(type='ClsDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255])
    distiller = built(tmp_path, dict(loss_srrl=term), taps, net(4), net(8), scope, **extra).train()
    optimizer = torch.optim.SGD(distiller.parameters(), 1e-3)
    distiller.loss(**batch(distiller))['loss_srrl'].backward()
    optimizer.step()
    assert isinstance(distiller.terms['loss_srrl'].connectors[0], nn.Module)
    grads = [p.grad for p in distiller.terms.parameters()]
    assert grads and all(g is not None and torch.isfinite(g).all() for g in grads)
    assert sum(p.grad is not None for p in distiller.student.backbone.parameters()) > 10


def fcn(width):
    """As mmseg's own: the head's last convolution reads its input beside what the first ones made of it."""
    net = segmentor(width)
    net['decode_head'].update(concat_input=True, num_convs=2)
    return net


def pspnet(width):
    net = segmentor(width)
    del net['decode_head']['num_convs'], net['decode_head']['concat_input']
    net['decode_head'].update(type='PSPHead', pool_scales=(1, 2))
    return net


def deeplabv3plus(width):
    net = pspnet(width)
    del net['decode_head']['pool_scales']
    net['decode_head'].update(type='DepthwiseSeparableASPPHead', dilations=(1, 2), c1_in_channels=width, c1_channels=4)
    return net


def upernet(width):
    net = pspnet(width)
    net['decode_head'].update(type='UPerHead', in_channels=[width, 2 * width, 4 * width, 8 * width])
    net['decode_head'].update(in_index=[0, 1, 2, 3])
    return net


KD = dict(type='lckd_mm.KDLoss', tau=2.0)
STAGES = [f'stage{i}' for i in range(1, 5)]


@pytest.mark.parametrize(
    ('net', 'taps', 'on'),
    [
        (fcn, dict(stage4='decode_head.convs.0@in'), 'stage4'),
        (pspnet, dict(stage4='decode_head.psp_modules@in'), 'stage4'),
        (
            deeplabv3plus,
            dict(stage1='decode_head.c1_bottleneck@in', stage4='decode_head.aspp_modules@in'),
            ['stage1', 'stage4'],
        ),
        (
            upernet,
            {f'stage{i + 1}': f'decode_head.lateral_convs.{i}@in' for i in range(3)}
            | dict(stage4='decode_head.psp_modules@in'),
            STAGES,
        ),
        (segformer, {f'stage{i + 1}': f'decode_head.convs.{i}@in' for i in range(4)}, STAGES),
    ],
)
def test_a_segmentor_s_features_run_through_the_teacher_s_whole_decode_head(net, taps, on, tmp_path):
    """The loss by hand; what the head reads beside its first module is the student's, too."""
    term = dict(loss=KD, student=on, reuse=on, teacher='logits', connector=dict(type='lckd_mm.ConvBN'))
    taps = dict(taps, logits='decode_head.conv_seg')
    distiller = built(tmp_path, dict(loss_head=term), taps, net(4), net(8), 'mmseg').train()
    data, head = batch(distiller), distiller.teacher.model.decode_head
    with torch.no_grad():
        stages = list(distiller.teacher.model.backbone(distiller.teacher.convert(data['inputs'], None)))
        theirs = head(stages)
        features = distiller.student.backbone(data['inputs'])
        names = [on] if isinstance(on, str) else on
        for connector, name in zip(distiller.terms['loss_head'].connectors, names, strict=True):
            place = int(name.removeprefix('stage')) - 1
            stages[place] = connector(features[place], stages[place])
        ours = head(stages)
        assert not torch.allclose(ours, theirs)
        wanted = kd_divergence(ours, theirs, 2.0).mean()
    for _ in range(2):  # where the head reads a tap is found in the first batch
        value = distiller.loss(**data)['loss_head']
        torch.testing.assert_close(value, wanted)
    value.backward()
    grads = {name: p.grad.abs().sum() for name, p in distiller.student.named_parameters() if p.grad is not None}
    assert sum(grads[name] > 0 for name in grads if name.startswith('backbone')) > 10
    assert not any(grads[name] > 0 for name in grads if not name.startswith('backbone'))
    assert all(p.grad.abs().sum() > 0 for p in distiller.terms.parameters() if p.dim() == 4)
    assert all(p.grad is None for p in distiller.teacher.model.parameters())


def test_a_run_of_the_runner_with_both_keys(tmp_path, scenes):
    """Rehearsal included; the checkpoint is the student."""
    terms = dict(
        loss_cross=dict(loss=FIT, student='tower', reuse='tower', teacher='logits'),
        loss_w=dict(loss=dict(type=Weighted), on='tower', given=dict(scores='logits')),
    )
    taps = dict(tower=TOWER['tower'], logits=TOWER['logits'])
    cfg = config('mmdet', scenes, tmp_path / 'run', model(tmp_path, terms, taps), iters=3)
    cfg.default_hooks.distillation = HOOK
    cfg.default_hooks.logger.interval = 1
    runner = run(cfg)
    for name in terms:
        values = [entry[name] for entry in scalars(tmp_path / 'run') if name in entry]
        assert len(values) == 3 and all(0 < v < float('inf') for v in values)
    file = torch.load(tmp_path / 'run' / 'iter_3.pth', weights_only=False)
    assert file['state_dict'].keys() == build_model(towers(4), 'mmdet').state_dict().keys()
    assert not runner.model.teacher._calls
