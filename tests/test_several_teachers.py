"""Several teachers of one student: which term is whose, what runs, and the promises of every teacher."""

import re

import pytest
import torch
from mmengine.config import Config
from run_helpers import HOSTS, config, run, scalars, scenes, segmentor, validation
from torch import nn
from torchvision.models import VisionTransformer

from lckd_mm.config import check_teacher_file, teachers_of
from lckd_mm.distillation.teachers import of_teachers
from lckd_mm.hooks import show_batch
from lckd_mm.hosts import build_model, fabricate_samples
from lckd_mm.storage.files import read_checkpoint

MEAN, STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
SIZES = dict(image_size=64, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)
KD = dict(loss=dict(type='lckd_mm.KDLoss'), on='logits')
FITNETS = dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='stage4', connector=dict(type='lckd_mm.ConvBN'))
COSINE = dict(
    loss=dict(type='lckd_mm.CosineLoss'), student='stage4', teacher='tokens',
    connector=[dict(type='lckd_mm.ConvBN'), dict(type='lckd_mm.MatchSize')],
)  # fmt: skip


@pytest.fixture
def teachers(tmp_path):
    """A wide segmentor, a middle one, and a vision transformer, with their files."""
    found = {}
    for seed, (name, width) in enumerate(dict(wide=12, middle=6).items()):
        torch.manual_seed(seed)
        torch.save(build_model(segmentor(width), 'mmseg').state_dict(), tmp_path / f'{name}.pth')
        taps = dict(logits='decode_head.conv_seg', stage4='backbone.layer4@preact')
        found[name] = dict(model=segmentor(width), checkpoint=str(tmp_path / f'{name}.pth'), taps=taps)
    torch.save(VisionTransformer(**SIZES).state_dict(), tmp_path / 'scene.pth')
    found['scene'] = dict(
        module='torchvision.models.VisionTransformer', args=SIZES, checkpoint=str(tmp_path / 'scene.pth'), mean=MEAN,
        std=STD, size=64, patch=16, prefix=1, taps=dict(tokens='encoder.ln'),
    )  # fmt: skip
    return found


def distiller(teachers, **terms):
    terms = terms or dict(
        loss_kd=dict(KD, of=['wide', 'middle']), loss_fitnets=dict(FITNETS, of='wide'), loss_cos=COSINE
    )
    return dict(
        type='lckd_mm.Distiller', student=segmentor(4), teachers=teachers, terms=terms, dry_run_size=64,
        student_taps=dict(logits='decode_head.conv_seg', stage4='backbone.layer4@preact'),
    )  # fmt: skip


def built(scope, teachers, **terms):
    scope('mmseg')
    torch.manual_seed(0)
    made = build_model(distiller(teachers, **terms), 'mmseg')
    made.init_weights()
    torch.manual_seed(1)
    return made.train(), torch.randn(2, 3, 64, 64), fabricate_samples(made.student, 2, (64, 64))


def terms_of(losses):
    return {name: value for name, value in losses.items() if name.count('_') and not name.startswith(('decode', 'aux'))}


def test_each_term_is_of_its_teacher(scope, teachers):
    """As the same terms with one teacher each; tasks and kinds of teachers may differ."""
    made, images, samples = built(scope, teachers)
    assert {name: (term.of, term.weight) for name, term in made.terms.items()} == dict(
        loss_kd_wide=('wide', 0.5), loss_kd_middle=('middle', 0.5), loss_fitnets=('wide', 1.0), loss_cos=('scene', 1.0)
    )
    torch.manual_seed(2)  # of the head's dropout
    found = terms_of(made.loss(images, samples))
    assert not any(key.startswith(('teacher', 'scene')) for key in made.state_dict())
    for name, term in made.terms.items():
        own = {key: value for key, value in teachers[term.of].items() if key != 'taps'}
        own = dict(distiller(None), teacher=own, teacher_taps=teachers[term.of]['taps'], teachers=None)
        plain = dict(loss_cos=COSINE, loss_fitnets=FITNETS).get(name, dict(KD, weight=0.5))
        scope('mmseg')
        alone = build_model(own | dict(terms={name: plain}), 'mmseg').train()
        alone.teacher.load()
        alone.student.load_state_dict(made.student.state_dict())
        alone.terms[name].load_state_dict(term.state_dict())
        torch.manual_seed(2)
        torch.testing.assert_close(found[name], terms_of(alone.loss(images, samples))[name], rtol=1e-5, atol=1e-6)


def test_the_mean_of_several_has_the_gradient_of_their_mean(scope, teachers):
    """For KD that of the mean of the probabilities."""
    kd = dict(loss=dict(type='lckd_mm.KDLoss', tau=1.0), on='logits', of=['wide', 'middle'])
    made, *_ = built(scope, teachers, loss_kd=kd)
    z, targets = torch.randn(2, 11, 8, 8, requires_grad=True), [torch.randn(2, 11, 8, 8) for _ in range(2)]
    halves = [term.weight * term.loss([z], [t]) for term, t in zip(made.terms.values(), targets)]
    (ours,) = torch.autograd.grad(sum(halves), z)
    mean = sum(t.softmax(1) for t in targets) / 2
    loss = made.terms['loss_kd_wide'].loss([z], [mean.log()])
    torch.testing.assert_close(ours, torch.autograd.grad(loss, z)[0])


def test_one_that_is_not_read_does_not_run(scope, teachers):
    made, images, samples = built(scope, teachers)
    ran = []
    for name, one in made.teachers.items():
        one.teacher.model.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    made.loss(images, samples)
    assert ran == ['wide', 'middle', 'scene']
    made.terms['loss_cos'].scale = made.terms['loss_kd_middle'].scale = 0.0
    ran.clear()
    losses = made.loss(images, samples)
    assert ran == ['wide'] and losses['loss_cos'] == losses['loss_kd_middle'] == 0 < losses['loss_kd_wide']
    # DDP waits for a gradient of each connector.
    losses['loss_cos'].backward()
    assert all((p.grad == 0).all() for p in made.terms['loss_cos'].parameters())
    for term in made.terms.values():
        term.scale = 0.0
    ran.clear()
    assert not any(made.loss(images, samples)[name] for name in made.terms) and not ran


def test_connectors_that_wait_for_images_get_their_own_teacher_s(scope, teachers):
    margins = dict(type='lckd_mm.MarginReLU', margin='data', batches=1)
    ofd = dict(FITNETS, loss=dict(type='lckd_mm.OFDLoss'), teacher_connector=margins)
    made, images, samples = built(scope, teachers, loss_a=dict(ofd, of='wide'), loss_b=dict(ofd, of='middle'))
    waiting = [one for term in made.terms.values() for one in term.waiting()]
    made._data = dict(inputs=images, data_samples=samples)
    made.student.data_preprocessor.forward = lambda batch, training: batch
    show_batch(made, waiting, made._data)
    for one in waiting:
        one.connector.finish_fitting()
    for name, term in zip(('wide', 'middle'), made.terms.values()):
        own = made.teachers[name]
        x = own.teacher(own.taps, ['stage4'], images, samples)['stage4']
        below = (x * (x < 0)).sum((0, 2, 3)) / (x < 0).sum((0, 2, 3)).clamp(min=1)
        torch.testing.assert_close(term.teacher_connectors[0].margin, below)


def test_a_run_with_several(scenes, tmp_path, teachers, capfd):
    """Weight 0 is the plain run to the bit; a resumed run is the whole one; no file holds a teacher."""
    plain = run(config('mmseg', scenes, tmp_path / 'plain', segmentor(4), 10)).model.state_dict()
    zero = {name: dict(term, weight=0.0) for name, term in distiller(None)['terms'].items()}
    null = run(config('mmseg', scenes, tmp_path / 'null', distiller(teachers, **zero), 10)).model.state_dict()
    assert all(torch.equal(value, null[key]) for key, value in plain.items())

    def cfg_of(name, **extra):
        cfg = config('mmseg', scenes, tmp_path / name, distiller(teachers), 20, **extra)
        cfg.log_level = 'INFO'
        cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
        cfg.custom_hooks = [dict(type='lckd_mm.ResumeHook'), dict(type='lckd_mm.GradientShareHook', tap='stage4')]
        return cfg

    whole = run(cfg_of('whole')).model.state_dict()
    again = run(cfg_of('again', load_from=str(tmp_path / 'whole' / 'iter_10.pth'), resume=True)).model.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in again.items())
    assert {'loss_kd_wide', 'loss_kd_middle', 'loss_cos', 'gradient_cos'} <= scalars(tmp_path / 'whole')[0].keys()
    assert list(read_checkpoint(str(tmp_path / 'whole/iter_20.pth'), 'test')['state_dict']) == list(plain)
    log = ''.join(capfd.readouterr())
    assert "teacher 'wide': EncoderDecoder" in log and "taps of teacher 'scene': tokens='encoder.ln'" in log
    assert re.search(r'loss_cos: CosineLoss, weight 1, .*, of scene: stage4 32x8x8 \| tokens 16x4x4', log)


REFUSED = {
    'none': (dict(teachers=None), 'give teacher=dict(model=…, checkpoint=…), or teachers=dict(NAME='),
    'both': (dict(teacher=dict(model='x', checkpoint='y')), 'teacher and teachers exclude each other; remove one'),
    'no dict': (dict(teachers=[1]), 'teachers must be a dict of name to teacher'),
    'a name': (dict(teachers={'a.b': {}}), "the name 'a.b' must be a word"),
    'keys': (dict(teachers=dict(a=dict(checkpoint='x'))), 'teachers.a: expected the keys model, checkpoint'),
    'taps': (dict(teacher_taps='backbone'), 'of several teachers each has its own taps'),
    'inherit': (dict(inherit=['backbone']), 'inherit copies the weights of one teacher'),
    'whose': (dict(terms=dict(loss_kd=KD)),
              "the taps ['logits'] are those of 'wide', 'middle'; name its teacher, as in of='wide'"),
    'nobody': (dict(terms=dict(loss_kd=dict(KD, on='score'))), "the taps ['score'] are of none of 'wide', 'middle'"),
    'unknown': (dict(terms=dict(loss_kd=dict(KD, of='big'))), "of='big' is no teacher; there is 'wide', 'middle', 'sc"),
    'a name twice': (dict(terms=dict(loss_kd=dict(KD, of=['wide', 'middle']), loss_kd_wide=dict(KD, of='wide'))),
                     "term 'loss_kd_wide': 'loss_kd' stands for a term of this name, too; rename one"),
    'a list in a list': (dict(terms=dict(loss_kd=dict(KD, of=[['wide']]))), 'of must name teachers, each once'),
    'twice': (dict(terms=dict(loss_kd=dict(KD, of=['wide', 'wide']))), 'of must name teachers, each once'),
    'borrowed': (dict(terms=dict(loss_a=dict(FITNETS, of='wide'),
                                 loss_b=dict(FITNETS, of='middle', connector='loss_a'))),
                 "no term 'loss_a' before this one to borrow from"),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_a_sentence_while_building(name, scope, teachers):
    changes, sentence = REFUSED[name]
    scope('mmseg')
    with pytest.raises((ValueError, KeyError, TypeError), match=re.escape(sentence)) as caught:
        build_model(distiller(teachers) | changes, 'mmseg')
    assert '\n' not in str(caught.value)


def test_errors_name_the_teacher(scope, teachers, tmp_path):
    scope('mmseg')
    with pytest.raises(ValueError, match=r'^teachers\.scene: mean=\[0\.5\] is in the units 0 to 1'):
        build_model(distiller(teachers | dict(scene=teachers['scene'] | dict(mean=[0.5], std=[0.5]))), 'mmseg')
    with pytest.raises(KeyError, match="teacher 'wide' tap 'logits': no module 'nothing'"):
        build_model(distiller(teachers | dict(wide=teachers['wide'] | dict(taps=dict(logits='nothing')))), 'mmseg')
    torch.save(dict(x=torch.zeros(1)), tmp_path / 'other.pth')
    made = build_model(distiller(teachers | dict(wide=teachers['wide'] | dict(checkpoint=str(tmp_path / 'other.pth')))))
    with pytest.raises(ValueError, match=r'^teachers\.wide: the checkpoint .* does not fit EncoderDecoder'):
        made.init_weights()


def test_one_teacher_may_have_the_longer_form(scope, teachers):
    made, images, samples = built(scope, dict(wide=teachers['wide']), loss_kd=KD)
    assert made.terms['loss_kd'].of == 'wide' and made.loss(images, samples)['loss_kd'] > 0
    assert made.teacher is made.teachers['wide'].teacher
    seen = []
    made.observers.append(lambda student, teacher, connected, losses: seen.append(list(teacher)))
    made.loss(images, samples)
    assert seen == [['logits', 'stage4']]


def test_a_derived_config_removes_one(scope, teachers):
    made, *_ = built(scope, teachers | dict(middle=None, scene=None), loss_kd=KD)
    assert list(made.teachers) == ['wide']


def test_errors_of_any_kind_keep_their_kind():
    from lckd_mm.distillation.teachers import named_in_errors

    for error in (FileNotFoundError(2, 'No such file'), UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad'), KeyError('k'),
                  ModuleNotFoundError('gone', name='gone')):  # fmt: skip
        with (
            pytest.raises((OSError, ValueError, KeyError, ImportError), match=r'teachers\.a: ') as caught,
            named_in_errors('a'),
        ):
            raise error
        assert isinstance(error, type(caught.value)) and getattr(caught.value, 'name', None) == getattr(
            error, 'name', None
        )


def test_hooks_that_need_one_say_so_before_training(scenes, tmp_path, teachers):
    cfg = config('mmseg', scenes, tmp_path, distiller(teachers), 10, **validation(scenes))
    for hook in (dict(type='lckd_mm.TeacherCheckHook'), dict(type='lckd_mm.LipschitzMonitorHook', term='loss_fitnets')):
        cfg.custom_hooks = [hook]
        with pytest.raises(
            ValueError, match="it has the teachers 'wide', 'middle', 'scene', and what was asked for works"
        ):
            run(cfg)
    assert not list(tmp_path.glob('iter_*.pth'))


def test_weights_of_a_list():
    terms = of_teachers(dict(loss_a=dict(of=['x', 'y'], weight='share:0.3'), loss_b=dict(of='x', weight=2)), ['x', 'y'])
    assert {name: (term['of'], term['weight']) for name, term in terms.items()} == dict(
        loss_a_x=('x', 'share:0.15'), loss_a_y=('y', 'share:0.15'), loss_b=('x', 2)
    )


def test_a_missing_file_is_found_before_the_data_are_read(teachers):
    cfg = Config(dict(model=distiller(teachers | dict(wide=dict(teachers['wide'], checkpoint='gone.pth')))))
    assert list(teachers_of(cfg)) == ['middle', 'scene', 'wide']
    with pytest.raises(
        FileNotFoundError, match=r"teachers\.wide: no checkpoint at 'gone\.pth'.*model\.teachers\.wide\."
    ):
        check_teacher_file(cfg)
    built_itself = dict(module=nn.Linear, args=dict(in_features=2, out_features=2), checkpoint='as built')
    check_teacher_file(Config(dict(model=distiller(dict(a=built_itself)))))
