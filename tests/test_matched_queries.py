"""MatchedQueryLoss: predictions of both nets' queries, matched by the Hungarian algorithm."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from run_helpers import HOOK, config, detector, run, scalars, scenes
from small_nets import rcnn
from test_queries import NAMES, cxcywh_giou, detr, judged
from test_reuse import built, model

from lckd_mm.distillation import NonFiniteError
from lckd_mm.hosts import build_model
from lckd_mm.losses import MatchedQueryLoss

TAPS = dict(scores='bbox_head[0]', boxes='bbox_head[1]')
LOSS = dict(type='lckd_mm.MatchedQueryLoss')


def term(**extra):
    return dict(loss_queries=dict(dict(loss=LOSS, on='scores', given=dict(boxes='boxes')), **extra))


def distiller(tmp_path, student, teacher, **extra):
    """With a teacher whose boxes depend on what its head reads, as they do not before any training."""
    found = built(tmp_path, term(**extra), TAPS, student, teacher)
    torch.manual_seed(4)
    with torch.no_grad():
        for p in found.teacher.model.bbox_head.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return found


def random_predictions(layers, images, queries, classes=5):
    scores = 2 * torch.randn(layers, images, queries, classes, dtype=torch.float64)
    return scores, 0.2 + 0.3 * torch.rand(layers, images, queries, 4, dtype=torch.float64)


def loss_of(sigmoids=True, **extra):
    loss = MatchedQueryLoss(**extra)
    loss.sigmoids = dict(student=sigmoids, teacher=sigmoids)
    return loss


# ---- the loss


def pair_by_hand(loss, sigmoids, z, b, t, c):
    """The part of the loss of a pair of predictions, and its weight."""
    if sigmoids:
        p, q = t.sigmoid(), z.sigmoid()
        divergence = F.binary_cross_entropy(q, p, reduction='sum') - F.binary_cross_entropy(p, p, reduction='sum')
        w = p.max()
    else:
        p = t.softmax(0)
        divergence, w = (p * (p.log() - z.log_softmax(0))).sum(), p[:-1].max()
    boxes = loss.weights['boxes'] * (b - c).abs().sum() + loss.weights['giou'] * (1 - cxcywh_giou(b, c))
    return loss.weights['scores'] * divergence + w * boxes, w


@pytest.mark.parametrize('sigmoids', [True, False])
@pytest.mark.parametrize(
    ('queries', 'layers', 'most', 'of'),
    [((4, 3), (2, 3), 300, [1, 2]), ((4, 4), (3, 3), 300, [0, 1, 2]), ((3, 5), (3, 1), 2, [0, 0, 0])],
)
def test_the_loss_by_hand(sigmoids, queries, layers, most, of):
    """Over all assignments; ``of``: the teacher's layer for each of the student's."""
    torch.manual_seed(0)
    loss = loss_of(sigmoids, scores=0.7, boxes=3.0, giou=0.5, queries=most)
    (ours, our_boxes), (theirs, their_boxes) = (
        random_predictions(count, 2, each) for count, each in zip(layers, queries)
    )
    expected = 0.0
    for layer, other in enumerate(of):
        value = weights = 0.0
        for image in range(2):
            z, b, t, c = ours[layer, image], our_boxes[layer, image], theirs[other, image], their_boxes[other, image]
            parts = [[pair_by_hand(loss, sigmoids, *ours, *theirs) for ours in zip(z, b)] for theirs in zip(t, c)]
            sure = sorted(range(len(t)), key=lambda i: -parts[i][0][1])[: min(most, *queries)]
            value += min(
                sum(parts[i][j][0] for i, j in zip(sure, order)) for order in permutations(range(len(z)), len(sure))
            )
            weights += sum(parts[i][0][1] for i in sure)
        expected += value / max(1, weights)
    ours.requires_grad_()
    our_boxes.requires_grad_()
    value = loss(ours, theirs, boxes=their_boxes, student_boxes=our_boxes)
    torch.testing.assert_close(value, torch.as_tensor(expected))
    value.backward()
    assert ours.grad.abs().sum() > 0 < our_boxes.grad.abs().sum()


def test_the_order_of_the_queries_does_not_matter_and_equal_predictions_lose_nothing():
    torch.manual_seed(0)
    scores, boxes = random_predictions(2, 3, 9)
    order = torch.randperm(9)
    loss = loss_of()
    shuffled = dict(boxes=boxes, student_boxes=boxes[:, :, order])
    assert loss(scores[:, :, order], scores, **shuffled).abs() < 1e-12
    assert loss(scores + 0.1, scores, **shuffled) > 0.01
    none = scores[:, :, :0].requires_grad_()
    value = loss(none, scores, boxes=boxes, student_boxes=boxes[:, :, :0])
    value.backward()
    assert value == 0


def test_a_teacher_that_sees_nothing_weighs_little():
    """The divisor is at least 1, as in DETR's own loss."""
    scores, boxes = random_predictions(1, 1, 4)
    loss = loss_of(scores=0)
    far = dict(boxes=boxes, student_boxes=boxes + 0.3)
    assert loss(scores, torch.full_like(scores, -20.0), **far) < 1e-6
    sure = torch.full_like(scores, 20.0)
    torch.testing.assert_close(loss(scores, sure, **far), loss(sure, sure, **far))


def test_scores_of_1e4_give_a_finite_loss_and_gradient():
    scores, boxes = random_predictions(2, 2, 6)
    scores, boxes = (1e4 * scores).bfloat16().float(), boxes.bfloat16().float()
    for sigmoids in (True, False):
        ours = scores.flip(2).requires_grad_()
        value = loss_of(sigmoids)(ours, scores, boxes=boxes, student_boxes=boxes)
        value.backward()
        assert value.isfinite() and ours.grad.isfinite().all()


# ---- in a distiller


@pytest.mark.parametrize('name', [name for name in NAMES if name != 'ddq'])
def test_a_student_with_the_teacher_s_weights_loses_nothing(tmp_path, name):
    """All layers; DINO's student has denoising queries, too."""
    net = detr(name)
    found = distiller(tmp_path, net, net)
    found.student.load_state_dict(found.teacher.model.state_dict())
    found.eval()
    found.student.training = True
    with torch.no_grad():
        value, seen, _ = judged(found)
        torch.testing.assert_close(seen['student'], seen['teacher'], rtol=1e-5, atol=1e-5)
        assert seen['student'].shape[:3] == (2, 2, 7)
        assert value.abs() < 0.02  # what rounding does to the GIoU of thin boxes
        found.student.bbox_head.apply(lambda m: [p.mul_(1.2) for p in m.parameters(recurse=False)])
        assert judged(found)[0] > 0.05


@pytest.mark.parametrize(
    ('student', 'teacher'), [('dino', 'deformable'), ('deformable', 'dino'), ('conditional', 'ddq')]
)
def test_what_is_compared_is_what_the_heads_give_without_denoising_queries(tmp_path, student, teacher):
    """Only the student gets a gradient, through its whole decoder."""
    found, outputs = distiller(tmp_path, detr(student), detr(teacher)).train(), []
    hook = found.student.bbox_head.register_forward_hook(lambda _, __, y: outputs.append(y))
    value, seen, data = judged(found)
    hook.remove()
    ((scores, boxes),) = outputs
    assert (scores.shape[2] > 7) == (student == 'dino')
    with torch.no_grad():
        theirs = found.teacher.model(found.teacher.convert(data['inputs'], None), data['data_samples'], mode='tensor')
    torch.testing.assert_close(seen['student'], scores[:, :, -7:])
    torch.testing.assert_close(seen['teacher'], theirs[0])
    own = dict(boxes=theirs[1], student_boxes=boxes[:, :, -7:])
    torch.testing.assert_close(value, found.terms['loss_queries'].loss(scores[:, :, -7:], theirs[0], **own))
    found.zero_grad()
    value.backward()
    for module in (found.student.decoder, found.student.encoder, found.student.backbone):
        assert sum(p.grad.abs().sum() for p in module.parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in found.teacher.model.parameters())
    if student == 'dino':  # which its denoising queries alone use
        assert not found.student.dn_query_generator.label_embedding.weight.grad.any()


def test_classes_of_other_numbers_are_matched_by_name(tmp_path):
    names = dict(student=['a', 'b', 'c'], teacher=['x', 'c', 'b', 'y', 'a'])
    found = distiller(tmp_path, detr('dino', classes=3), detr('deformable'), classes=names).train()
    value, seen, data = judged(found)
    theirs = found.teacher.model(found.teacher.convert(data['inputs'], None), data['data_samples'], mode='tensor')
    torch.testing.assert_close(seen['teacher'], theirs[0][..., [4, 2, 1]])
    assert value > 0 and seen['student'].shape[3] == 3


def test_boxes_alone_between_a_softmax_and_sigmoids(tmp_path):
    found = distiller(tmp_path, detr('detr'), detr('dino', classes=3), loss=dict(LOSS, scores=0)).train()
    value, _, _ = judged(found)
    value.backward()
    head = found.student.bbox_head
    assert value > 0 and head.fc_reg.weight.grad.any() and head.fc_cls.weight.grad is None


def test_under_bfloat16(tmp_path):
    found = distiller(tmp_path, detr('dino'), detr('deformable')).train()
    with torch.autocast('cpu', torch.bfloat16):
        value, _, _ = judged(found)
    value.backward()
    assert value.isfinite() and value.dtype == torch.float32


def test_nan_is_found_and_named(tmp_path):
    found = distiller(tmp_path, detr('deformable'), detr('deformable')).train()
    found.teacher.model.bbox_head.cls_branches[0].bias.data[0] = float('nan')
    with pytest.raises(NonFiniteError, match='loss_queries'):
        judged(found)


NONE = dict(loss=dict(LOSS, scores=0, boxes=0, giou=0))


@pytest.mark.parametrize(
    ('extra', 'student', 'teacher', 'says'),
    [
        (NONE, 'dino', 'dino', 'scores, boxes and giou are 0, so that nothing is compared; give one a weight'),
        (dict(loss=dict(LOSS, queries=0)), 'dino', 'dino', 'queries must be at least 1'),
        (dict(given=None), 'dino', 'dino', r'needs given=dict\(boxes=TAP\)'),
        ({}, 'ddq', 'dino', "DDQ trains dense queries .* loss=dict\\(type='lckd_mm.QueryLoss'\\) and queries=True"),
        ({}, 'detr', 'dino', "student's head has a softmax and the teacher's a sigmoid for each class.* scores=0"),
        (dict(on='neck'), 'dino', 'dino', r'expected class scores .* the student gives .* taps=dict\(scores='),
        (dict(queries=True), 'dino', 'dino', "write loss=dict\\(type='lckd_mm.QueryLoss'\\)"),
        (dict(loss=dict(type='lckd_mm.KDLoss')), 'dino', 'dino', 'or match the predictions of both nets, by lckd_mm.M'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_while_the_model_is_built(tmp_path, extra, student, teacher, says):
    if extra.get('loss', LOSS)['type'] != LOSS['type']:
        extra = dict(extra, given={})
    with pytest.raises((ValueError, KeyError), match=f'(term .loss_queries.|MatchedQueryLoss).*{says}'):
        built(tmp_path, term(**extra), dict(TAPS, neck='neck[0]'), detr(student), detr(teacher))


def test_other_numbers_of_classes_are_refused_with_what_helps(tmp_path):
    with pytest.raises(ValueError, match=r"3 class scores and the teacher 5; write classes='by name' .* or scores=0"):
        built(tmp_path, term(), TAPS, detr('dino', classes=3), detr('dino'))


NETS = dict(DINO=lambda: detr('dino'), FasterRCNN=rcnn, RetinaNet=lambda: detector(8))


@pytest.mark.parametrize(('student', 'teacher'), [('DINO', 'FasterRCNN'), ('DINO', 'RetinaNet'), ('RetinaNet', 'DINO')])
def test_a_net_without_queries_is_refused_with_what_works(tmp_path, student, teacher):
    nets = [NETS[student](), NETS[teacher]()]
    other = f'the teacher is a {teacher}' if student == 'DINO' else f'the student is a {student}'
    with pytest.raises(ValueError, match=f"term 'loss_queries': .* such as DINO, and {other}; .*taps='backbone'"):
        built(tmp_path, term(), TAPS, *nets)
    fit = dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='stage4', connector=dict(type='lckd_mm.ConvBN'))
    built(tmp_path, dict(loss_fit=fit), 'backbone', *nets)


def test_stored_outputs_of_a_teacher_are_refused(tmp_path):
    cfg = model(tmp_path, term(), TAPS, detr('deformable'), detr('deformable'))
    cfg['teacher']['stored'] = str(tmp_path / 'stored')
    with pytest.raises(ValueError, match=r'rows are images, .* remove stored from it'):
        build_model(cfg, 'mmdet')


def runner_config(scenes, folder, nets):
    cfg = config('mmdet', scenes, folder, nets, iters=4)
    cfg.default_hooks.resume = dict(type='lckd_mm.ResumeHook')
    cfg.default_hooks.checkpoint.interval = 2
    cfg.default_hooks.logger.interval = 1
    cfg.optim_wrapper.optimizer.lr = 1e-4
    return cfg


def test_a_run_of_the_runner(tmp_path, scenes):
    """Rehearsal and denoising queries included; a run that goes on from a checkpoint is the same to the bit."""
    student, teacher = detr('dino', classes=10), detr('deformable', classes=10)
    nets, logged, files = model(tmp_path, term(), TAPS, student, teacher), {}, []
    for name in ('whole', 'rest'):
        cfg = runner_config(scenes, tmp_path / name, nets)
        cfg.default_hooks.distillation = HOOK
        if name == 'rest':
            cfg.resume, cfg.load_from = True, str(tmp_path / 'whole' / 'iter_2.pth')
        run(cfg)
        logged[name] = [row['loss_queries'] for row in scalars(cfg.work_dir) if 'loss_queries' in row]
        files.append(torch.load(tmp_path / name / 'iter_4.pth', weights_only=False)['state_dict'])
    assert len(logged['whole']) == 4 and logged['whole'][-2:] == logged['rest']
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())
    build_model(student, 'mmdet').load_state_dict(files[0])


def test_weight_zero_is_the_plain_run_to_the_bit(tmp_path, scenes):
    """Once with the term idle, once with its value computed and taken by a weight that rounds it away."""
    student, teacher, states = detr('dino', classes=10), detr('deformable', classes=10), []
    for weight in (None, 0.0, 1e-40):
        nets = student if weight is None else model(tmp_path, term(weight=weight), TAPS, student, teacher)
        cfg = runner_config(scenes, tmp_path / str(weight), nets)
        if weight is not None:
            cfg.default_hooks.distillation = HOOK
        states.append(run(cfg).model.state_dict())
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(value, state[key]) for key, value in states[0].items())
