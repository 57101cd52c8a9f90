"""Terms with `regions`: the teacher's RoI head scores the regions that the student sampled."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from run_helpers import HOOK, config, run, scalars, scenes
from small_nets import rcnn
from test_reuse import batch, built, model

from lckd_mm.distillation.regions import RegionHead
from lckd_mm.hosts import build_model, load_config
from lckd_mm.losses import RegionBoxLoss
from lckd_mm.taps import FeatureTaps

FASTER, CASCADE, MASK = (
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
)
KD = dict(type='lckd_mm.KDLoss', tau=2.0)
FIT = dict(type='lckd_mm.FitNetsLoss')
SCORES, MASKS = 'roi_head.bbox_head.fc_cls', 'roi_head.mask_head.conv_logits'


def term(loss=KD, on='scores', **extra):
    return dict(loss_regions=dict(dict(loss=loss, on=on, regions=True), **extra))


def distiller(tmp_path, student=FASTER, teacher=FASTER, terms=None, ours=SCORES, theirs=SCORES, **extra):
    return built(
        tmp_path, terms or term(), dict(scores=ours), rcnn(student), rcnn(teacher, width=24),
        teacher_taps=dict(scores=theirs), **extra,
    )  # fmt: skip


def stage(path):
    part = path.split('.')[2]
    return [int(part)] if part.isdigit() else []


@pytest.mark.parametrize(
    ('student', 'teacher', 'ours', 'theirs'),
    [
        (FASTER, FASTER, SCORES, SCORES),
        (FASTER, CASCADE, SCORES, 'roi_head.bbox_head.2.fc_cls'),
        (CASCADE, FASTER, 'roi_head.bbox_head.1.fc_cls', SCORES),
        (CASCADE, CASCADE, 'roi_head.bbox_head.1.fc_cls', 'roi_head.bbox_head.1.fc_cls'),
        (FASTER, MASK, SCORES, SCORES),
    ],
)
def test_both_heads_score_the_regions_that_the_student_sampled(tmp_path, student, teacher, ours, theirs):
    found = distiller(tmp_path, student, teacher, ours=ours, theirs=theirs).train()
    data = batch(found)
    extractor = ours.replace('bbox_head', 'bbox_roi_extractor').removesuffix('.fc_cls')
    noted = {}
    seen = found.student.get_submodule(extractor).register_forward_hook(
        lambda _, args, __: noted.update(regions=args[1])
    )
    own = found.student.get_submodule(ours).register_forward_hook(lambda _, __, y: noted.update(scores=y))
    value = found.loss(**data)['loss_regions']
    seen.remove()
    own.remove()
    net = found.teacher.model
    with torch.no_grad():
        pyramid = net.extract_feat(found.teacher.convert(data['inputs'], data['data_samples']))
        wanted = net.roi_head._bbox_forward(*stage(theirs), pyramid, noted['regions'])['cls_score']
    assert len(wanted) == len(noted['scores']) > 20
    log_p, q = (noted['scores'].double() / 2).log_softmax(1), (wanted.double() / 2).softmax(1)
    expected = 4 * F.kl_div(log_p, q, reduction='none').sum(1).mean()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    found.zero_grad()
    value.backward()
    for path in (ours, 'backbone.conv1'):
        assert found.student.get_submodule(path).weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())
    assert not found.teacher._calls
    for nets in (found.student, net):
        assert all('forward' not in vars(m) for m in nets.modules())


def test_a_teacher_s_own_regions_are_not_compared(tmp_path):
    """With the teacher's weights in the student, both heads give the same scores, whatever the teacher proposes."""
    found = built(tmp_path, term(), dict(scores=SCORES), rcnn(), rcnn())
    found.student.load_state_dict(found.teacher.model.state_dict())
    found.eval()
    with torch.no_grad():
        assert found.loss(**batch(found))['loss_regions'].abs() < 1e-6
        found.student.roi_head.bbox_head.fc_cls.weight.mul_(1.5)
        assert found.loss(**batch(found))['loss_regions'] > 1e-4


def test_masks_of_the_same_regions_and_none_without_an_object(tmp_path):
    found = distiller(tmp_path, MASK, MASK, term(FIT), MASKS, MASKS).train()
    data = batch(found)
    losses = found.loss(**data)
    assert 0 < losses['loss_regions'] < float('inf')
    losses['loss_regions'].backward()
    assert found.student.roi_head.mask_head.conv_logits.weight.grad.abs().sum() > 0
    for sample in data['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
    empty = found.loss(**data)['loss_regions']
    assert empty == 0 and empty.requires_grad


MASK_LOSS = dict(type='lckd_mm.RegionMaskLoss')


@pytest.mark.parametrize('agnostic', [False, True])
def test_masks_are_compared_at_the_classes_of_the_objects(tmp_path, agnostic):
    """In float64, region by region; the classes are those that the student's own loss of masks takes."""
    nets = [rcnn(MASK), rcnn(MASK, width=24)]
    for net in nets:
        net['roi_head']['mask_head']['class_agnostic'] = agnostic
    found = built(
        tmp_path, term(MASK_LOSS, weight=0.5), dict(scores=MASKS), *nets, teacher_taps=dict(scores=MASKS)
    ).train()
    seen, loss = {}, found.terms['loss_regions'].loss
    hooks = [
        loss.register_forward_pre_hook(
            lambda _, args, extras: seen.update(maps=args, labels=extras['region_labels']), with_kwargs=True
        ),
        found.student.roi_head.mask_head.loss_mask.register_forward_hook(lambda _, args, __: seen.update(own=args[2])),
    ]
    data = batch(found)
    for number, sample in enumerate(data['data_samples']):
        sample.gt_instances.labels.fill_(3 + number)
    value = found.loss(**data)['loss_regions']
    for hook in hooks:
        hook.remove()
    (ours, theirs), labels = (x.double() for x in seen['maps']), seen['labels']
    assert torch.equal(labels, seen['own']) and len(labels) > 2
    assert agnostic == (ours.shape[1] == 1) and (agnostic or labels.unique().numel() > 1)
    total = 0.0
    for i, c in enumerate(labels.tolist()):
        p, q = theirs[i, c].sigmoid(), ours[i, c].sigmoid()
        total += (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean() / len(labels)
    torch.testing.assert_close(value.double(), 0.5 * total, rtol=1e-4, atol=0)
    value.backward()
    assert found.student.roi_head.mask_head.conv_logits.weight.grad.abs().sum() > 0


def test_masks_need_the_same_regions(tmp_path):
    with pytest.raises(ValueError, match=r'RegionMaskLoss compares masks of the same regions; .*write regions=True'):
        built(tmp_path, term(MASK_LOSS, regions=False), dict(scores=MASKS), rcnn(MASK), rcnn(MASK))
    with pytest.raises(ValueError, match=r"tap the mask head's logits, 'roi_head\.mask_head\.conv_logits'"):
        built(tmp_path, term(MASK_LOSS), dict(scores=SCORES), rcnn(MASK), rcnn(MASK))


@pytest.mark.parametrize(
    ('student', 'terms', 'taps', 'says'),
    [
        (FASTER, term(), dict(scores='neck[0]'), "student tap 'scores' is 'neck\\[0\\]'; tap a layer of such a head"),
        (FASTER, term(reuse='scores'), dict(scores=SCORES), 'reuse and regions=True exclude each other; remove one'),
        (FASTER, term(regions=1), dict(scores=SCORES), 'regions must be True or False, got 1'),
        (
            MASK, term(FIT, ['scores', 'masks']), dict(scores=SCORES, masks=MASKS),
            'the taps of the student lie in several heads; write a term for each',
        ),
        (FASTER, term(dict(type='lckd_mm.JacobianLoss')), dict(scores=SCORES), 'so it takes no regions=True'),
    ],
)  # fmt: skip
def test_what_cannot_score_the_same_regions_is_refused(tmp_path, student, terms, taps, says):
    with pytest.raises((ValueError, TypeError), match=f"term 'loss_regions'.*{says}"):
        built(tmp_path, terms, taps, rcnn(student), rcnn(student))


def test_a_head_that_needs_queries_beside_the_regions_is_refused():
    sparse = build_model(load_config('mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py').model.to_dict(), 'mmdet')
    taps = FeatureTaps(dict(scores='roi_head.bbox_head.5.fc_cls'), 'teacher')
    with pytest.raises(ValueError, match="the bbox_head of the teacher's SparseRoIHead cannot be run on given regions"):
        RegionHead.of('loss_kd', taps, ['scores'], sparse)


def test_without_the_key_the_sentence_names_it(tmp_path):
    with pytest.raises(ValueError, match='regions=True in the term'):
        built(tmp_path, dict(loss_kd=dict(loss=KD, on='scores')), dict(scores=SCORES), rcnn(), rcnn())


def test_a_run_of_the_runner(tmp_path, scenes):
    """Rehearsal included; the checkpoint is the student, and a run that goes on after it is the same to the bit."""
    theirs = dict(scores='roi_head.bbox_head.2.fc_cls')
    nets = model(tmp_path, term(), dict(scores=SCORES), rcnn(), rcnn(CASCADE), teacher_taps=theirs)
    logged = {}
    for name in ('whole', 'rest'):
        cfg = config('mmdet', scenes, tmp_path / name, nets, iters=4)
        cfg.default_hooks.distillation = HOOK
        cfg.default_hooks.resume = dict(type='lckd_mm.ResumeHook')
        cfg.default_hooks.checkpoint.interval = 2
        cfg.default_hooks.logger.interval = 1
        if name == 'rest':
            cfg.resume, cfg.load_from = True, str(tmp_path / 'whole' / 'iter_2.pth')
        run(cfg)
        logged[name] = [entry['loss_regions'] for entry in scalars(tmp_path / name) if 'loss_regions' in entry]
    assert len(logged['whole']) == 4 and all(0 < v < float('inf') for v in logged['whole'])
    assert logged['rest'] == logged['whole'][2:]
    files = [torch.load(tmp_path / name / 'iter_4.pth', weights_only=False)['state_dict'] for name in ('whole', 'rest')]
    assert files[0].keys() == build_model(rcnn(), 'mmdet').state_dict().keys()
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])


def test_peers_score_no_regions():
    net = rcnn()
    cfg = dict(type='lckd_mm.OnlineDistiller', nets=[net, net], taps=dict(scores=SCORES), terms=term(), dry_run_size=64)
    with pytest.raises(ValueError, match="term 'loss_regions': a peer is not frozen, so it scores no regions"):
        build_model(cfg, 'mmdet')


def boxes_by_hand(student, teacher, scores, coders=None):
    """RegionBoxLoss in float64, region by region and class by class."""
    p, top, bottom = scores.softmax(1), 0.0, 0.0
    for i in range(len(student)):
        for c in range(student.shape[1] // 4):
            s, t = (x[i, 4 * c : 4 * c + 4] for x in (student, teacher))
            if coders:
                (mean, std), (other_mean, other_std) = (torch.tensor(x, dtype=torch.float64) for x in coders)
                t = (t * other_std + other_mean - mean) / std
            weight = p[i, c] if student.shape[1] > 4 else 1 - p[i, -1]
            top, bottom = top + weight * (s - t).abs().sum(), bottom + weight
    return top / max(1.0, bottom)


@pytest.mark.parametrize('agnostic', [False, True])
def test_boxes_of_the_same_regions_by_hand(agnostic):
    torch.manual_seed(0)
    student, teacher = (torch.randn(7, 4 if agnostic else 12, dtype=torch.float64) for _ in range(2))
    scores = torch.randn(7, 4, dtype=torch.float64)
    student.requires_grad_()
    loss, coders = RegionBoxLoss(), (([0.0] * 4, [0.1, 0.1, 0.2, 0.2]), ([0.1, 0.0, 0.0, 0.0], [0.05, 0.05, 0.1, 0.1]))
    value = loss(student, teacher, scores=scores)
    torch.testing.assert_close(value, boxes_by_hand(student, teacher, scores), rtol=1e-12, atol=0)
    for head, (means, stds) in zip((loss.read_head, loss.read_teacher_head), coders):
        head(SimpleNamespace(bbox_coder=SimpleNamespace(means=means, stds=stds)))
    value = loss(student, teacher, scores=scores)
    torch.testing.assert_close(value, boxes_by_hand(student, teacher, scores, coders), rtol=1e-12, atol=0)
    value.backward()
    assert student.grad.abs().sum() > 0
    assert loss(student, teacher, scores=scores * 0 + torch.tensor([0.0, 0, 0, 50])) < 1e-9  # background alone
    with pytest.raises(ValueError, match=r'RegionBoxLoss: offsets .* do not belong to class scores'):
        loss(student, teacher, scores=scores[:5])
    with pytest.raises(ValueError, match="the student's Coder gives no offsets"):
        loss.read_head(SimpleNamespace(bbox_coder=type('Coder', (), {})()))


def test_boxes_of_the_stages_of_two_cascades(tmp_path):
    """A teacher's stage with other deviations predicts the same boxes as the student's, in other units."""
    terms = dict(
        loss_boxes=dict(
            loss=dict(type='lckd_mm.RegionBoxLoss'), on='offsets', given=dict(scores='scores'), regions=True
        )
    )
    names = {k: dict(scores=f'roi_head.bbox_head.{k}.fc_cls', offsets=f'roi_head.bbox_head.{k}.fc_reg') for k in (0, 2)}
    found = built(tmp_path, terms, names[0], rcnn(CASCADE), rcnn(CASCADE), teacher_taps=names[2])
    stds = found.terms['loss_boxes'].loss._coders
    assert stds['student'][1] == [0.1, 0.1, 0.2, 0.2] and stds['teacher'][1] == [0.033, 0.033, 0.067, 0.067]
    found.student.load_state_dict(found.teacher.model.state_dict())
    heads = found.student.roi_head.bbox_head, found.teacher.model.roi_head.bbox_head
    with torch.no_grad():
        state = heads[1][2].state_dict()
        heads[0][0].load_state_dict(state)
        for name in ('weight', 'bias'):
            ratio = torch.tensor([0.033, 0.033, 0.067, 0.067]) / torch.tensor([0.1, 0.1, 0.2, 0.2])
            tensor = getattr(heads[0][0].fc_reg, name)
            tensor.mul_(ratio if name == 'bias' else ratio[:, None])
        found.eval()
        assert found.loss(**batch(found))['loss_boxes'] < 1e-5
        heads[0][0].fc_reg.bias += 1
        assert found.loss(**batch(found))['loss_boxes'] > 0.1


def test_boxes_and_scores_of_1e4_give_a_finite_loss_and_gradient():
    """As half precision leaves them; mmcv's RoIAlign takes no bfloat16 on a CPU, so that no net is run in it here."""
    student, teacher = (2e4 * torch.randn(9, 12).bfloat16() for _ in range(2))
    scores = (2e4 * torch.randn(9, 4)).bfloat16().float()
    student = student.float().requires_grad_()
    value = RegionBoxLoss()(student, teacher.float(), scores=scores)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all() and student.grad.any()
