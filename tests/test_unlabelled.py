"""Images without annotations, beside the labelled ones: what both nets see, the stream of images, the promises."""

import re

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from run_helpers import HOSTS, built, config, distiller, run, scalars, scenes, teacher_file
from test_several_teachers import teachers

from lckd_mm.data.images import Images
from lckd_mm.hooks.unlabelled import _Order, _Seeded
from lckd_mm.hosts import build_model
from lckd_mm.losses import KDLoss

KD = dict(loss=dict(type='lckd_mm.KDLoss'), on='logits')
MORE = dict(KD, images='unlabelled')
FITNETS = dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='stage4', connector=dict(type='lckd_mm.ConvBN'))
#: With more a detector diverges.
LR = 0.002
PACKED = dict(mmseg='PackSegInputs', mmdet='PackDetInputs', mmpretrain='PackInputs')


def hook(host, scenes, **options):
    """The validation images, flipped at random, without their annotations."""
    flip = dict(type='RandomFlip', prob=0.5)
    if host == 'mmdet':
        flip['direction'] = ['horizontal', 'vertical']
    pipeline = [dict(type='LoadImageFromFile'), flip, dict(type=PACKED[host])]
    if host == 'mmpretrain':
        pipeline.insert(1, dict(type='RandomCrop', crop_size=48))
    data = dict(type='lckd_mm.Images', folder=str(scenes / 'JPEGImages'), pipeline=pipeline)
    return dict(type='lckd_mm.UnlabelledHook', dataset=data, batch_size=3) | options


class Spy(Hook):
    """Notes the unlabelled images of each iteration."""

    priority = 'LOW'

    def __init__(self):
        self.seen = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        batch = runner.model.unlabelled
        self.seen[runner.iter] = [(s.img_path, x.clone()) for s, x in zip(batch['data_samples'], batch['inputs'])]


def cfg_of(host, scenes, folder, teacher_file, terms, *hooks, iters=4, **extra):
    teacher, path = teacher_file(host)
    model = distiller(host, HOSTS[host][0](4), teacher, path) | dict(terms=terms)
    cfg = config(host, scenes, folder, model, iters, **extra)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    cfg.custom_hooks = [dict(type='lckd_mm.ResumeHook'), *hooks]
    cfg.optim_wrapper.optimizer.lr, cfg.default_hooks.checkpoint.interval = LR, 5
    return cfg


@pytest.mark.parametrize('host', HOSTS)
def test_a_run_with_images_without_labels(host, scenes, tmp_path, teacher_file):
    """Weight 0 is the plain run to the bit; a resumed run sees the same images, and ends as the whole one."""
    terms, spy = dict(loss_kd=KD, loss_more=dict(MORE, weight=2.0)), Spy()
    plain = config(host, scenes, tmp_path / 'plain', HOSTS[host][0](4), 4)
    plain.optim_wrapper.optimizer.lr = LR
    plain = run(plain).model.state_dict()
    nothing = {name: dict(term, weight=0.0) for name, term in terms.items()}
    null = run(cfg_of(host, scenes, tmp_path / 'null', teacher_file, nothing, hook(host, scenes)))
    assert all(torch.equal(value, null.model.state_dict()[key]) for key, value in plain.items())
    if host == 'mmseg':
        # While only its own terms rest, the others train as without the unlabelled images.
        resting = dict(loss_kd=KD, loss_more=dict(MORE, weight=0.0))
        rests = run(cfg_of(host, scenes, tmp_path / 'rests', teacher_file, resting, hook(host, scenes)))
        alone = run(cfg_of(host, scenes, tmp_path / 'alone', teacher_file, dict(loss_kd=KD))).model.state_dict()
        assert all(torch.equal(value, rests.model.state_dict()[key]) for key, value in alone.items())

    whole = run(cfg_of(host, scenes, tmp_path / 'whole', teacher_file, terms, hook(host, scenes), iters=8), spy)
    entries = scalars(tmp_path / 'whole')
    assert all(entry['loss_more'] > 0 for entry in entries) and len(spy.seen) == 8
    paths = [path for i in range(6) for path, _ in spy.seen[i]]
    assert len(set(paths)) == 18 and len({path for i in range(8) for path, _ in spy.seen[i]}) == 20
    again, seen = Spy(), spy.seen
    cfg = cfg_of(host, scenes, tmp_path / 'again', teacher_file, terms, hook(host, scenes, num_workers=1), iters=8)
    cfg.load_from, cfg.resume = str(tmp_path / 'whole' / 'iter_5.pth'), True
    state = run(cfg, again).model.state_dict()
    assert list(again.seen) == list(range(5, 8))
    for i, batch in again.seen.items():
        assert all(p == q and torch.equal(x, y) for (p, x), (q, y) in zip(batch, seen[i]))
    assert all(torch.equal(value, state[key]) for key, value in whole.model.state_dict().items())
    assert whole.model.unlabelled is None


def test_the_terms_see_their_own_images(built):
    """As the same term on these images with a plain forward of both nets; the gradient is the student's alone."""
    model, images, samples = built(
        'mmseg', terms=dict(loss_kd=KD, loss_more=MORE, loss_fit=dict(FITNETS, images='unlabelled'))
    )
    other = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    model.unlabelled = dict(inputs=list(other), data_samples=samples[:2])
    model.student.decode_head.dropout = None  # draws random numbers
    found = model.loss(images, samples)
    data = model.data_preprocessor(dict(inputs=list(other), data_samples=samples[:2]), True)
    names = ['logits', 'stage4']
    with torch.no_grad():
        t = model.teacher(model.teacher_taps, names, data['inputs'], data['data_samples'])
    with model.student_taps.record(model.student, names) as s:
        model.student(data['inputs'], data['data_samples'], mode='tensor')
    expected = model.terms['loss_more'].loss([s['logits']], [t['logits']])
    torch.testing.assert_close(found['loss_more'], expected)
    assert found['loss_kd'] != found['loss_more']
    fit = model.terms['loss_fit']
    torch.testing.assert_close(
        found['loss_fit'], fit.loss([fit.connectors[0](s['stage4'], t['stage4'])], [t['stage4']])
    )
    found['loss_more'].backward()
    assert next(model.student.backbone.parameters()).grad.abs().sum() > 0
    assert all(p.grad is None for p in model.teacher.model.parameters())


def test_with_several_teachers_and_the_student_itself(scope, teachers):
    from test_several_teachers import built

    own = dict(FITNETS, on=None, student='stage4', teacher='logits', of='student')
    made, images, samples = built(
        scope, teachers, loss_kd=dict(KD, of='wide'), loss_more=dict(MORE, of=['wide', 'middle']),
        loss_self=dict(own, images='unlabelled'),
    )  # fmt: skip
    made.unlabelled = dict(inputs=list(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)), data_samples=samples)
    losses = made.loss(images, samples)
    assert losses['loss_more_wide'] > 0 < losses['loss_more_middle'] < losses['loss_self']
    assert losses['loss_kd'] != losses['loss_more_wide']
    ran = []
    for name, one in made.teachers.items():
        one.teacher.model.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    made.terms['loss_more_middle'].scale = 0.0
    assert made.loss(images, samples)['loss_more_middle'] == 0 and ran == ['wide', 'wide']


def test_the_order_is_one_permutation_after_another_over_all_ranks(monkeypatch):
    import lckd_mm.hooks.unlabelled as module

    seen = []
    for rank in range(2):
        monkeypatch.setattr(module, 'get_rank', lambda rank=rank: rank)
        monkeypatch.setattr(module, 'get_world_size', lambda: 2)
        seen.append(list(_Order(10, 3, 5, 0, 8)))
        assert list(_Order(10, 3, 5, 4, 8)) == seen[rank][4:]
    stream = sorted(pair for batches in seen for batch in batches for pair in batch)
    assert [place for place, _ in stream] == list(range(48))
    epochs = [[index for _, index in stream[at : at + 10]] for at in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1]


def test_an_image_s_augmentation_follows_from_its_place(scenes):
    class Drawn:
        def __getitem__(self, index):
            return index, np.random.rand(), torch.rand(1).item(), __import__('random').random()

    data, before = _Seeded(Drawn(), 3), torch.get_rng_state()
    assert data[4, 0] == data[4, 0] and len({data[place, 0] for place in range(5)}) == 5
    assert torch.equal(torch.get_rng_state(), before)
    assert _Seeded(Drawn(), 4)[4, 0] != data[4, 0]


def test_only_what_the_teacher_is_sure_of():
    student, teacher = torch.randn(4, 5, 6, 6, requires_grad=True), 3 * torch.randn(4, 5, 6, 6)
    sure = teacher.softmax(1).amax(1) >= 0.8
    assert 0 < sure.sum() < sure.numel()
    loss = KDLoss(tau=2.0, confidence=0.8)([student], [teacher])
    p, q = (teacher / 2).log_softmax(1), (student / 2).log_softmax(1)
    torch.testing.assert_close(loss, 4 * (p.exp() * (p - q)).sum(1)[sure].mean())
    (gradient,) = torch.autograd.grad(loss, student)
    assert (gradient.abs().sum(1) > 0).eq(sure).all()
    assert KDLoss(confidence=1.0)([student], [teacher]) == 0
    # Each anchor by itself, with a sigmoid for each class; nothing changes without a threshold.
    boxes = KDLoss(tau=1.0, activation='sigmoid', num_classes=5, confidence=0.9)
    z, t = torch.randn(2, 10, 3, 3), 3 * torch.randn(2, 10, 3, 3)
    ours, theirs = (x.unflatten(1, (2, 5)) for x in (z, t))
    kept = theirs.sigmoid().amax(2) >= 0.9
    plain = KDLoss(tau=1.0, activation='sigmoid', num_classes=5)
    rows = [plain([a[None, :, None, None]], [b[None, :, None, None]])
            for a, b, k in zip(ours.movedim(2, -1).reshape(-1, 5), theirs.movedim(2, -1).reshape(-1, 5), kept.flatten())
            if k]  # fmt: skip
    torch.testing.assert_close(boxes([z], [t]), torch.stack(rows).mean())
    torch.testing.assert_close(KDLoss(confidence=0.0)([student], [teacher]), KDLoss()([student], [teacher]))
    with pytest.raises(ValueError, match='confidence must be at most 1'):
        KDLoss(confidence=1.5)


def test_the_images_of_a_folder(tmp_path, scenes):
    found = Images(str(scenes / 'JPEGImages'))
    assert len(found) == 20 and found[3]['img_path'].endswith('train_000003.jpg')
    with pytest.raises(FileNotFoundError, match=r'no folder .*gone.*; set folder to where the images are'):
        Images(str(tmp_path / 'gone'))
    (tmp_path / 'a.txt').write_text('')
    with pytest.raises(FileNotFoundError, match=r'no file in .* ends in \.bmp, .*; set folder or suffixes'):
        Images(str(tmp_path))


REFUSED = {
    'no hook': (dict(loss_more=MORE), [], "no unlabelled images; add custom_hooks=[dict(type='lckd_mm.UnlabelledHook'"),
    'no term': (dict(loss_kd=KD), [{}], "no term reads its images; write images='unlabelled' in one"),
    'labels': (dict(loss_more=dict(MORE, loss=dict(type='lckd_mm.DKDLoss'))), [{}], 'needs one label per sample'),
    'other images': (dict(loss_a=FITNETS, loss_b=dict(FITNETS, images='unlabelled', connector='loss_a')), [{}],
                     "cannot borrow the connector of 'loss_a', which sees labelled images"),
    'a word': (dict(loss_more=dict(KD, images='all')), [{}], "unknown images 'all', expected one of labelled, unl"),
    'a part': (dict(loss_more=dict(MORE, reuse='logits')), [{}], 'compares features alone; remove reuse'),
    'the loss': (dict(loss_more=dict(MORE, on='late')), [{}], "tap 'late' fires only with the loss, which images"),
    'a folder': (dict(loss_more=MORE), [dict(dataset=dict(type='lckd_mm.Images', folder='gone'))], "no folder 'gone'"),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_a_sentence_before_the_first_iteration(name, scenes, tmp_path, teacher_file):
    terms, hooks, sentence = REFUSED[name]
    cfg = cfg_of('mmseg', scenes, tmp_path, teacher_file, terms, *(hook('mmseg', scenes) | more for more in hooks))
    cfg.model.taps.late = 'auxiliary_head.conv_seg'
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(sentence)) as caught:
        run(cfg)
    assert '\n' not in str(caught.value) and not list(tmp_path.glob('iter_*.pth'))
