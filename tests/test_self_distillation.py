"""A student that teaches itself, deep to shallow, beside a teacher or alone; the weight of the task's own losses."""

import re

import pytest
import torch
from run_helpers import HOSTS, config, distiller, run, scalars, scenes, segmentor, teacher_file
from test_several_teachers import built as built_with
from test_several_teachers import teachers

from lckd_mm.hosts import build_model, fabricate_samples
from lckd_mm.storage.files import read_checkpoint

SHALLOW = dict(
    loss=dict(type='lckd_mm.CosineLoss'), student='shallow', teacher='deep', of='student',
    connector=[dict(type='lckd_mm.ConvBN'), dict(type='lckd_mm.MatchSize')],
)  # fmt: skip
TAPS = dict(shallow='backbone.layer1@preact', deep='backbone.layer4@preact', logits='decode_head.conv_seg')


def alone(**changes):
    return dict(
        type='lckd_mm.Distiller', student=segmentor(4), student_taps=TAPS, terms=dict(loss_self=SHALLOW),
        dry_run_size=64,
    ) | changes  # fmt: skip


def built(scope, **changes):
    scope('mmseg')
    torch.manual_seed(0)
    made = build_model(alone(**changes), 'mmseg')
    made.init_weights()
    torch.manual_seed(1)
    return made.train(), torch.randn(2, 3, 64, 64), fabricate_samples(made.student, 2, (64, 64))


def test_the_deep_stage_teaches_the_shallow_one(scope):
    made, images, samples = built(scope)
    assert not made.teachers
    seen = {}
    for name, path in (('shallow', 'layer1'), ('deep', 'layer4')):
        block = made.student.get_submodule(f'backbone.{path}')[-1]
        block.relu.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].clone()}))
    loss = made.loss(images, samples)['loss_self']
    ours, theirs = made.terms['loss_self'].connectors[0](seen['shallow'], seen['deep']), seen['deep']
    torch.testing.assert_close(loss, (1 - torch.cosine_similarity(ours, theirs, dim=1)).mean())
    loss.backward()
    parameters = dict(made.student.named_parameters())
    assert parameters['backbone.stem.0.weight'].grad.abs().sum() > 0
    # What teaches gets no gradient.
    assert parameters['backbone.layer4.0.bn2.weight'].grad is None


def test_beside_a_teacher(scope, teacher_file):
    model, file = teacher_file('mmseg')
    kd = dict(loss=dict(type='lckd_mm.KDLoss'), on='logits')
    made, images, samples = built(
        scope, teacher=dict(model=model, checkpoint=str(file)), teacher_taps=dict(logits='decode_head.conv_seg'),
        terms=dict(loss_kd=kd, loss_self=SHALLOW),
    )  # fmt: skip
    ran = []
    made.teacher.model.register_forward_pre_hook(lambda *_: ran.append(1))
    losses = made.loss(images, samples)
    assert losses['loss_kd'] > 0 and losses['loss_self'] > 0 and ran == [1]
    made.terms['loss_kd'].scale = 0.0
    losses = made.loss(images, samples)
    assert losses['loss_kd'] == 0 < losses['loss_self'] and ran == [1]
    made.terms['loss_self'].scale, made.terms['loss_kd'].scale = 0.0, 1.0
    assert made.loss(images, samples)['loss_self'] == 0 and ran == [1, 1]


def test_beside_several(scope, teachers):
    kd = dict(loss=dict(type='lckd_mm.KDLoss'), on='logits', of=['wide', 'middle'])
    own = dict(SHALLOW, student='stage4', teacher='logits', connector=dict(type='lckd_mm.ConvBN'))
    made, images, samples = built_with(scope, teachers, loss_kd=kd, loss_self=own)
    losses = made.loss(images, samples)
    assert losses['loss_kd_wide'] > 0 < losses['loss_self']


def test_a_run(scenes, tmp_path):
    """Weight 0 is the plain run to the bit; a resumed run is the whole one; connectors are beside the student."""
    plain = run(config('mmseg', scenes, tmp_path / 'plain', segmentor(4), 10)).model.state_dict()
    cfg = alone(terms=dict(loss_self=dict(SHALLOW, weight=0.0)))
    null = run(config('mmseg', scenes, tmp_path / 'null', cfg, 10)).model.state_dict()
    assert all(torch.equal(value, null[key]) for key, value in plain.items())

    def cfg_of(name, **extra):
        cfg = config('mmseg', scenes, tmp_path / name, alone(), 20, **extra)
        cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
        cfg.custom_hooks = [dict(type='lckd_mm.ResumeHook')]
        return cfg

    whole = run(cfg_of('whole')).model.state_dict()
    again = run(cfg_of('again', load_from=str(tmp_path / 'whole' / 'iter_10.pth'), resume=True)).model.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in again.items())
    stored = read_checkpoint(str(tmp_path / 'whole/iter_20.pth'), 'test')
    assert list(stored['state_dict']) == list(plain) and any('loss_self' in key for key in stored['lckd_mm']['terms'])
    assert 'loss_self' in scalars(tmp_path / 'whole')[0]


MARGIN = dict(type='lckd_mm.MarginReLU')
REFUSED = {
    'no teacher': (dict(terms=dict(loss_kd=dict(SHALLOW, of=None))), "unless each term is of='student'"),
    'the name': (dict(teachers=dict(student=dict(model='x', checkpoint='y'))), "and not 'student'"),
    'a margin': (dict(terms=dict(loss_self=dict(SHALLOW, teacher_connector=MARGIN))),
                 "its teacher is the student or its average, and MarginReLU needs a trained teacher; remove it"),
    'a margin in a list': (dict(terms=dict(loss_self=dict(SHALLOW, teacher_connector=[MARGIN]))),
                           'MarginReLU needs a trained teacher; remove it'),
    'classes': (dict(terms=dict(loss_self=dict(loss=dict(type='lckd_mm.KDLoss'), student='logits', teacher='logits',
                                               of='student', classes='by name'))), 'itself, and classes needs a'),
    'the same': (dict(terms=dict(loss_self=dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='deep', of='student'))),
                 'compares deep with itself, which is always equal; name other taps'),
    'its taps': (dict(teacher_taps='backbone'), 'teacher_taps belongs to a teacher, and there is none; remove it'),
    'a part': (dict(terms=dict(loss_self=dict(SHALLOW, reuse='deep'))), 'itself, and reuse needs a teacher'),
    'again': (dict(terms=dict(loss_self=dict(SHALLOW, loss=dict(type='lckd_mm.JacobianLoss')))),
              'itself, and JacobianLoss needs a teacher'),
    'a share of nothing': (dict(task_weight=0, terms=dict(loss_self=dict(SHALLOW, weight='start:0.5'))),
                           'with task_weight=0 it would be a share of a loss of 0; give it a number'),
    'a weight': (dict(task_weight=-1), 'Distiller: task_weight must be at least 0'),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_a_sentence_while_building(name, scope):
    changes, sentence = REFUSED[name]
    scope('mmseg')
    with pytest.raises((ValueError, KeyError, TypeError), match=re.escape(sentence)) as caught:
        build_model(alone(**changes), 'mmseg')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('host', HOSTS)
def test_the_task_s_own_losses_have_a_weight(host, scope, teacher_file):
    """Lists of losses, as detectors give, included; an accuracy stays as it is."""
    teacher, file = teacher_file(host)
    student = HOSTS[host][0](4) | HOSTS[host][3]
    found = {}
    for weight in (1.0, 0.25, 0.0):
        scope(host)
        torch.manual_seed(0)
        made = build_model(distiller(host, student, teacher, file) | dict(dry_run_size=64, task_weight=weight), host)
        made.init_weights()
        torch.manual_seed(1)
        images, samples = torch.randn(2, 3, 64, 64), fabricate_samples(made.student, 2, (64, 64))
        found[weight] = made.train().loss(images, samples)
    for name, value in found[1.0].items():
        factor = 0.25 if 'loss' in name and name not in made.terms else 1.0
        for x, y, z in zip(*([v] if torch.is_tensor(v) else v for v in (value, found[0.25][name], found[0.0][name]))):
            torch.testing.assert_close(factor * x, y)
            assert factor == 1 or z == 0
    total, _ = made.parse_losses(found[0.0])
    torch.testing.assert_close(total, sum(found[0.0][name] for name in made.terms))


# ---- the average of the student


KD = dict(loss=dict(type='lckd_mm.KDLoss'), on='logits')
EMA = dict(type='EMAHook', momentum=0.5)


def averaged(scenes, folder, *hooks, **changes):
    own = alone(teacher=dict(average=True), teacher_taps=TAPS, terms=dict(loss_kd=KD)) | changes
    cfg = config('mmseg', scenes, folder, own, 20)
    cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    cfg.custom_hooks = [dict(type='lckd_mm.ResumeHook'), *hooks]
    return cfg


def test_the_average_of_the_student_teaches_it(scenes, tmp_path):
    """It is EMAHook's, in each iteration; a resumed run is the whole one; weight 0 is the plain run with that hook."""
    from mmengine.hooks import Hook

    class Spy(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            teacher = runner.model.teacher.model
            (ema,) = (hook.ema_model for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
            own, theirs = runner.model.student.state_dict(), teacher.state_dict()
            gaps = [(own[k] - v).abs().max().item() for k, v in theirs.items() if v.is_floating_point()]
            seen.append((teacher is ema.module.student, teacher.training, max(gaps)))

    seen = []
    runner = run(averaged(scenes, tmp_path / 'whole', EMA), Spy())
    assert all(same and not training for same, training, _ in seen) and seen[0][2] == 0 < seen[-1][2]
    entries = scalars(tmp_path / 'whole')
    assert entries[-1]['loss_kd'] > 0
    again = averaged(scenes, tmp_path / 'again', EMA)
    again.load_from, again.resume = str(tmp_path / 'whole' / 'iter_10.pth'), True
    state = run(again).model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in runner.model.state_dict().items())
    plain = config('mmseg', scenes, tmp_path / 'plain', segmentor(4), 20, custom_hooks=[EMA])
    null = averaged(scenes, tmp_path / 'null', EMA, terms=dict(loss_kd=dict(KD, weight=0.0)))
    plain, null = run(plain).model.state_dict(), run(null).model.state_dict()
    assert all(torch.equal(value, null[key]) for key, value in plain.items())
    stored = read_checkpoint(str(tmp_path / 'whole/iter_20.pth'), 'test')
    assert list(stored['state_dict']) == list(plain)


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({}, "average=True is the average that an EMAHook keeps; add custom_hooks=[dict(type='EMAHook'"),
        (dict(teacher=dict(average=True, checkpoint='x.pth')), "average=True is the whole teacher, the average of the"),
        (dict(teacher=dict(average=False)), 'average=True is the whole teacher'),
        (dict(teacher=dict(average=True, taps='backbone')), 'average=True is the whole teacher'),
        (dict(terms=dict(loss_kd=dict(KD, on='deep', teacher_connector=MARGIN, loss=dict(type='lckd_mm.OFDLoss')))),
         'MarginReLU needs a trained teacher; remove it'),
    ],
)  # fmt: skip
def test_what_an_average_does_not_take(changes, sentence, scenes, tmp_path):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run(averaged(scenes, tmp_path, **changes))
