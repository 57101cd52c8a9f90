"""Classes of student and teacher: other orders, subsets and supersets, matched by their names or refused."""

import re

import pytest
import torch
from run_helpers import HOOK, HOSTS, config, distiller, run, scenes, teacher_file

from lckd_mm.distillation.classes import ClassMatch, check_names
from lckd_mm.functional import partial_target, target_divergence
from lckd_mm.hosts import build_model, class_names, config_class_names, fabricate_samples
from lckd_mm.losses import DKDLoss, KDLoss, PartialKDLoss

OWN = ['bird', 'cat', 'dog', 'cow', 'fox', 'hen', 'owl', 'pig', 'rat', 'yak']
THEIRS = {
    'another order': ['yak', *OWN[:-1]],
    'a superset': ['ant', *OWN[5:], 'bee', *OWN[:5]],
    'a subset': ['owl', 'bird', 'rat', 'cat'],
    'others, too': ['owl', 'bird', 'ant', 'rat', 'cat'],
}
KD = dict(type='lckd_mm.KDLoss', tau=1.0)


def net(host, classes, softmax=False):
    model = HOSTS[host][0](4)
    if host == 'mmpretrain':
        model |= dict(HOSTS[host][3])
        model['head']['num_classes'] = classes
    elif host == 'mmseg':
        model.pop('auxiliary_head')
        model['decode_head']['num_classes'] = classes
    else:
        model['bbox_head']['num_classes'] = classes
        model['bbox_head']['anchor_generator']['ratios'] = [0.5, 1.0]
        if softmax:
            model['bbox_head']['loss_cls'] = dict(type='CrossEntropyLoss', use_sigmoid=False)
    return model


def with_rows_of(student, teacher, rows, path, anchors, theirs):
    """The student's weights are the teacher's, each class's those of its namesake; classes of its own keep theirs."""
    state = teacher.state_dict()
    for name, own in student.state_dict().items():
        if name.startswith(path):
            given = state[name].unflatten(0, (anchors, theirs))
            kept = own.unflatten(0, (anchors, own.shape[0] // anchors))
            for mine, row in rows:
                kept[:, mine] = given[:, row]
        else:
            own.copy_(state[name])


@pytest.mark.parametrize('case', THEIRS)
@pytest.mark.parametrize('host', ['mmpretrain', 'mmseg', 'mmdet', 'mmdet, softmax'])
def test_a_student_that_has_its_teachers_scores_by_name_has_no_kd(scope, tmp_path, host, case):
    """On all hosts, with several anchors, sigmoids and a background: the map is the right one, and no other is."""
    host, softmax = host.split(',')[0], 'softmax' in host
    names = THEIRS[case]
    scope(host)
    torch.manual_seed(0)
    teacher = build_model(net(host, len(names), softmax), host)
    teacher.init_weights()
    torch.save(dict(state_dict=teacher.state_dict(), meta=dict(dataset_meta=dict(classes=names))), tmp_path / 't.pth')
    taps = HOSTS[host][2]
    cfg = distiller(host, net(host, len(OWN), softmax), net(host, len(names), softmax), tmp_path / 't.pth')
    cfg |= dict(taps=taps, dry_run_size=64, terms=dict(loss_kd=dict(loss=KD, on='logits', classes='by name')))
    model = build_model(cfg, host)
    with torch.no_grad():
        model.init_weights()
        rows = [(OWN.index(name), names.index(name)) for name in names if name in OWN]
        rows += [(len(OWN), len(names))] if softmax else []
        path = taps['logits'].partition('#')[0]
        with_rows_of(model.student, teacher, rows, path, 2 if host == 'mmdet' else 1, len(names) + softmax)
        model.eval()
        batch = torch.randn(2, 3, 64, 64), fabricate_samples(model.student, 2, (64, 64))
        with pytest.raises(ValueError, match="term 'loss_kd': its classes are matched by name before the first iter"):
            model(*batch, mode='loss')
        model.match_classes(OWN)
        assert model(*batch, mode='loss')['loss_kd'].abs() < 1e-5
        model.student.get_submodule(path).bias.copy_(torch.randn_like(model.student.get_submodule(path).bias))
        assert model(*batch, mode='loss')['loss_kd'] > 1e-3


# ---- labels


def matched(loss, config='by name', scores=None):
    match = ClassMatch('loss_x', config, loss)
    match.prepare(*(scores or ((5, 5), (4, 4))))
    match.match(OWN[:5], ['fox', 'ant', 'cat', 'bird'])
    return match


@pytest.mark.parametrize('loss', [DKDLoss(beta=2.0), PartialKDLoss('pt'), PartialKDLoss('topk', k=2)])
def test_labels_follow_and_other_classes_are_left_out(loss):
    torch.manual_seed(0)
    match = matched(loss)
    student, teacher = torch.randn(4, 5), torch.randn(4, 4)
    samples = fabricate(3, 4, 1, 0)  # cow, which the teacher lacks; fox; cat; bird
    (ours,), (theirs,) = match.kept([student], [teacher])
    assert torch.equal(ours, student[:, [0, 1, 4]])
    assert torch.equal(theirs, teacher[:, [3, 2, 0]])
    fresh = type(loss)(loss.kind, k=2) if isinstance(loss, PartialKDLoss) else DKDLoss(beta=2.0)
    if getattr(loss, 'kind', '') == 'topk':  # needs no label: all samples count
        assert torch.equal(loss(ours, theirs, samples), fresh(ours, theirs))
    else:
        assert torch.equal(loss(ours, theirs, samples), fresh(ours[1:], theirs[1:], fabricate(2, 1, 0)))


def fabricate(*labels):
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(label) for label in labels]


def test_rows_and_superclasses_are_those_of_the_kept_classes():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 4)
    loss = PartialKDLoss('sim')
    match = matched(loss)
    loss.bind([layer], 'x')
    rest = torch.nn.Linear(3, 3)
    rest.weight.data = layer.weight.data[[3, 2, 0]]
    plain = PartialKDLoss('sim')
    plain.bind([rest], 'x')
    assert torch.equal(loss.similarities, plain.similarities)
    loss = PartialKDLoss('rel', superclasses=[0, 0, 1, 1, 1], betas=(0.6, 0.3))
    (ours,), (theirs,) = matched(loss).kept([torch.randn(2, 5)], [torch.randn(2, 4)])
    siblings = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    assert torch.equal(loss.siblings, siblings)
    assert match.matched
    loss = PartialKDLoss('rel', superclasses=[0, 0, 1, 1, 0], betas=(0.6, 0.2))
    (ours,), (theirs,) = matched(loss).kept([torch.randn(2, 5)], [torch.randn(2, 4)])
    target = partial_target('rel', theirs, torch.tensor([2, 1]), siblings=torch.ones(3, 3).bool(), betas=(0.6, 0.2))
    expected = target_divergence(ours, target, 4.0).mean() * 16
    torch.testing.assert_close(loss(ours, theirs, fabricate(4, 1)), expected)


def test_tokens_and_anchors_are_picked_by_class():
    match = matched(KDLoss(), scores=((5, 5), (4, 4)))
    tokens = torch.randn(2, 7, 5), torch.randn(2, 7, 4)
    (ours,), (theirs,) = match.kept([tokens[0]], [tokens[1]])
    assert torch.equal(ours, tokens[0][..., [0, 1, 4]])
    maps = torch.randn(2, 3 * 6, 2, 2), torch.randn(2, 3 * 5, 2, 2)
    match = matched(KDLoss(num_classes=6), scores=((5, 6), (4, 5)))
    (ours,), (theirs,) = match.kept([maps[0]], [maps[1]])
    assert torch.equal(ours, maps[0].unflatten(1, (3, 6))[:, :, [0, 1, 4, 5]].flatten(1, 2))
    assert torch.equal(theirs, maps[1].unflatten(1, (3, 5))[:, :, [3, 2, 0, 4]].flatten(1, 2))


# ---- what is said


@pytest.mark.parametrize(
    ('config', 'says'),
    [
        ('name', "classes is 'name', expected 'by name', 'by position', or dict"),
        ({}, 'expected'),
        (dict(net=['a']), 'expected'),
        (dict(teacher='fox'), 'teacher must be a list of names'),
        (dict(teacher=['fox', 'cat']), 'the teacher has 4 scores, and 2 names: fox, cat'),
        (dict(teacher=['a', 'b', 'c', 'fox']), '1 names are in both nets, too few to compare'),
    ],
)
def test_mistakes(config, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        matched(KDLoss(), config)


def test_names_of_the_config_come_before_those_that_are_known():
    """Other words for the same classes: the config gives the teacher's in the student's."""
    loss = KDLoss()
    match = matched(loss, dict(teacher=['bird', 'cat', 'fox', 'dog']))
    (_,), (theirs,) = match.kept([torch.zeros(1, 5)], [torch.arange(4.0)[None]])
    assert theirs.tolist() == [[0, 1, 3, 2]]
    # A name that one net has twice is left out.
    match = matched(KDLoss(), dict(teacher=['bird', 'cat', 'cat', 'dog']))
    (_,), (theirs,) = match.kept([torch.zeros(1, 5)], [torch.arange(4.0)[None]])
    assert theirs.tolist() == [[0, 3]]
    match = ClassMatch('loss_x', 'by name', KDLoss())
    match.prepare((5, 5), (4, 4))
    with pytest.raises(ValueError, match="names of the teacher's classes are not in its checkpoint and its"):
        match.match(OWN[:5], None)


def test_other_names_are_refused_and_another_spelling_is_not():
    check_names('x', ['traffic light', 'cat'], ['Traffic_Light', 'cat'])
    check_names('x', ['cat'], None)
    with pytest.raises(ValueError, match="x compares class scores, and score 1 is 'dog' for the student and 'cow' for"):
        check_names('x', ['cat', 'dog'], ['cat', 'cow'])


# ---- where the names come from


def test_names_in_files_and_configs():
    assert class_names(dict(dataset_meta=dict(classes=('a', 'b')))) == ['a', 'b']
    assert class_names(dict(CLASSES=['a'])) == ['a']
    assert class_names(dict(dataset_meta=None)) is None
    assert class_names(None) is None
    assert config_class_names('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')[:2] == ['person', 'bicycle']
    assert config_class_names('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')[0] == 'road'
    assert len(config_class_names('mmpretrain::resnet/resnet18_8xb32_in1k.py')) == 1000
    assert config_class_names(dict(type='EncoderDecoder')) is None


@pytest.mark.parametrize('host', HOSTS)
def test_a_run_is_refused_or_trains_by_name(host, scenes, tmp_path, teacher_file):
    model, file = teacher_file(host)
    data = HOSTS[host][1](scenes, 'train')
    names = list(data['metainfo']['classes'])
    stored = torch.load(file)
    student = HOSTS[host][0](4)
    terms = dict(loss_kd=dict(loss=KD, on='logits'))

    def trained(names, **kd):
        torch.save(dict(stored, meta=dict(dataset_meta=dict(classes=names))), file)
        cfg = distiller(host, student, model, file) | dict(
            dry_run_size=64, terms=dict(loss_kd=dict(terms['loss_kd'], **kd))
        )
        cfg = config(host, scenes, tmp_path / 'work', cfg, iters=1, custom_hooks=[HOOK])
        return run(cfg).model.terms['loss_kd']

    with pytest.raises(ValueError, match=f"KDLoss compares class scores, and score 0 is '{names[0]}' for the student"):
        trained(names[::-1])
    assert trained(names).match is None
    assert trained(names[::-1], classes='by position').match is None
    assert trained(names[::-1], classes='by name').match.matched
    assert trained(names[::-1], classes='byname').match.matched  # of --cfg-options
    # Any loss on class scores, too.
    terms['loss_kd'] = dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='logits')
    with pytest.raises(ValueError, match='FitNetsLoss compares class scores'):
        trained(names[::-1])
