"""Stored outputs of a teacher: what is written, read and refused; augmentation that is replayed."""

import copy
import pickle
import random
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from run_helpers import HOSTS, ROOT, config, distiller, forked_trainings, run, scenes, teacher_file
from test_several_teachers import teachers

from lckd_mm.data.replayed import Replayed
from lckd_mm.distillation import FrozenTeacher, StoredTeacher
from lckd_mm.functional import spread_scores, top_scores
from lckd_mm.hooks import DistillationHook
from lckd_mm.hosts import build_model
from lckd_mm.storage.files import read_checkpoint
from lckd_mm.storage.tensors import TensorFolder

KD = dict(loss=dict(type='lckd_mm.KDLoss'), on='logits')
FITNETS = dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='stage4', connector=dict(type='lckd_mm.ConvBN'))
RANDOM = ('RandomFlip', 'RandomCrop', 'PhotoMetricDistortion')


@pytest.fixture
def cfg_of(scenes, teacher_file, tmp_path):
    """``cfg_of('mmseg', 'name', stored)``: a run of six iterations on images without random augmentation."""

    def make(host, name, stored=None, terms=None, iters=6, replay=None, augmented=False, seed=3):
        teacher, path = teacher_file(host)
        terms = terms or dict(loss_kd=KD, loss_fitnets=FITNETS)
        model = distiller(host, HOSTS[host][0](4), teacher, path) | dict(terms=terms)
        if stored is not None:
            model['teacher']['stored'] = stored
        cfg = config(host, scenes, tmp_path / name, model, iters)
        cfg.randomness.seed = seed
        cfg.default_hooks.checkpoint.interval, cfg.optim_wrapper.optimizer.lr = 3, 0.002
        cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
        cfg.custom_hooks = [dict(type='lckd_mm.ResumeHook')]
        data = cfg.train_dataloader.dataset
        if replay is not None:
            cfg.train_dataloader.dataset = dict(type='lckd_mm.Replayed', dataset=data, **replay)
        elif not augmented:
            data.pipeline = [step for step in data.pipeline if step.type not in RANDOM]
        return cfg

    return make


@pytest.fixture
def passes(monkeypatch):
    """The sizes of the batches that went through a teacher since this list was cleared."""
    seen, features = [], FrozenTeacher._features

    def noted(self, taps, names, one, inputs, *args):
        seen.append(len(inputs))
        return features(self, taps, names, one, inputs, *args)

    monkeypatch.setattr(FrozenTeacher, '_features', noted)
    return seen


def state(runner):
    return {**runner.model.state_dict(), **runner.model.distillation_state()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def files(folder):
    return sorted(Path(folder).rglob('*.stored'))


@pytest.mark.parametrize('host', HOSTS)
def test_one_run_stores_and_all_train_to_the_bit_as_with_the_running_teacher(host, cfg_of, passes, tmp_path):
    plain = state(run(cfg_of(host, 'plain', iters=4)))
    assert passes == [2] * 5  # the rehearsal, too
    passes.clear()
    first = run(cfg_of(host, 'first', str(tmp_path / 'stored'), iters=4))
    assert same(state(first), plain) and passes == [2] * 8  # 16 images
    assert len(files(tmp_path / 'stored')) == 16
    passes.clear()
    assert same(state(run(cfg_of(host, 'second', str(tmp_path / 'stored'), iters=4))), plain) and not passes
    # Fewer taps, another seed, and images that are loaded by a worker.
    cfg = cfg_of(host, 'third', str(tmp_path / 'stored'), dict(loss_kd=KD), 4, seed=4)
    cfg.train_dataloader.num_workers = 1
    fewer = state(run(cfg))
    assert not passes
    assert same(fewer, state(run(cfg_of(host, 'fourth', None, dict(loss_kd=KD), 4, seed=4))))


def test_a_resumed_run_is_the_whole_one_and_weight_0_the_plain_student(cfg_of, tmp_path):
    whole = run(cfg_of('mmseg', 'whole', str(tmp_path / 'stored')))
    cfg = cfg_of('mmseg', 'again', str(tmp_path / 'stored'))
    cfg.load_from, cfg.resume = str(tmp_path / 'whole' / 'iter_3.pth'), True
    assert same(state(run(cfg)), state(whole))
    keys = read_checkpoint(str(tmp_path / 'whole' / 'iter_6.pth'), 'test')
    assert list(keys['state_dict']) == list(whole.model.student.state_dict())
    zero = run(cfg_of('mmseg', 'zero', str(tmp_path / 'new'), dict(loss_kd=dict(KD, weight=0.0)), 3))
    plain = cfg_of('mmseg', 'plain', None, dict(loss_kd=dict(KD, weight=0.0)), 3)
    plain.model, plain.custom_hooks = plain.model.student, []
    del plain.default_hooks.distillation
    assert same(zero.model.state_dict(), run(plain).model.state_dict())


def test_what_a_killed_run_stored_is_not_computed_again(cfg_of, passes, tmp_path):
    whole = state(run(cfg_of('mmseg', 'whole', str(tmp_path / 'stored'))))
    (tmp_path / 'stored' / 'manifest.json').unlink()
    for path in files(tmp_path / 'stored')[:3]:
        path.unlink()
    passes.clear()
    assert same(state(run(cfg_of('mmseg', 'again', str(tmp_path / 'stored')))), whole)
    assert 2 <= len(passes) <= 3 and len(files(tmp_path / 'stored')) == 16


def test_all_batches_that_are_stored_have_the_size_of_training(cfg_of, passes, tmp_path):
    cfg = cfg_of('mmseg', 'run', str(tmp_path / 'stored'), iters=1)
    cfg.train_dataloader.batch_size = 3
    run(cfg)
    assert passes == [3] * 6 and len(files(tmp_path / 'stored')) == 16


def test_files_hold_no_pickle_and_a_checksum(cfg_of, tmp_path):
    run(cfg_of('mmseg', 'run', str(tmp_path / 'stored'), iters=1))
    (one, *_), folder = files(tmp_path / 'stored'), TensorFolder(str(tmp_path / 'stored'), 'teacher')
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(one.read_bytes())
    key = one.parent.name + one.stem
    assert {name: x.shape for name, x in folder.read(key).items()} == {
        'logits#0': (11, 8, 8), 'logits#0@axes': (4,), 'stage4#0': (64, 8, 8), 'stage4#0@axes': (4,),
    }  # fmt: skip
    content = one.read_bytes()
    for broken in (content[:-1], content[:-9] + b'x' + content[-8:], b''):
        one.write_bytes(broken)
        with pytest.raises(ValueError, match=f'{one.name}.* is damaged, its checksum is wrong; remove it and'):
            folder.read(key)


def test_a_damaged_file_is_named_and_the_way_out_works(cfg_of, passes, tmp_path):
    run(cfg_of('mmseg', 'run', str(tmp_path / 'stored'), iters=1))
    for path in files(tmp_path / 'stored'):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"'\S+\.stored' is damaged, its checksum is wrong; remove it and .*manifest"):
        run(cfg_of('mmseg', 'broken', str(tmp_path / 'stored')))
    for path in (*files(tmp_path / 'stored'), tmp_path / 'stored' / 'manifest.json'):
        path.unlink()
    run(cfg_of('mmseg', 'again', str(tmp_path / 'stored'), iters=1))


def test_half_precision_is_within_its_bound(cfg_of, tmp_path):
    run(cfg_of('mmseg', 'whole', str(tmp_path / 'whole'), iters=1))
    runner = run(cfg_of('mmseg', 'half', dict(folder=str(tmp_path / 'half'), half=True), iters=1))
    one, samples = runner.model.teacher, None
    batch = runner.model.data_preprocessor(next(iter(runner.train_dataloader)), True)
    inputs, samples = batch['inputs'], batch['data_samples']
    found = one(runner.model.teacher_taps, ['logits', 'stage4'], inputs, samples)
    exact = FrozenTeacher.__call__(one, runner.model.teacher_taps, ['logits', 'stage4'], inputs, samples)
    for name, x in found.items():
        assert x.dtype == torch.float32
        assert ((x - exact[name]).abs() <= exact[name].abs() * 2**-11 + 2**-25).all() and not x.equal(exact[name])
    size = [sum(path.stat().st_size for path in files(tmp_path / name)) for name in ('whole', 'half')]
    assert 1.9 < size[0] / size[1] < 2.1
    large = torch.full((1, 1), 7e4)
    with pytest.raises(ValueError, match=r'has values up to 7e\+04, and half precision ends at 65504; remove half'):
        one._narrowed('stage4', large)


def test_the_largest_scores_by_hand():
    z = torch.tensor([1.0, 3.0, -2.0, 0.5, 2.0], dtype=torch.float64).view(1, 5, 1, 1)
    values, classes, rest = top_scores(z, 2)
    assert values.flatten().tolist() == [3, 2] and classes.flatten().tolist() == [1, 4]
    mean = (np.exp(1) + np.exp(-2) + np.exp(0.5)) / 3
    torch.testing.assert_close(rest.item(), np.log(mean))
    spread = spread_scores(values, classes, rest, 5)
    expected = torch.tensor([mean, np.exp(3), mean, mean, np.exp(2)], dtype=torch.float64)
    torch.testing.assert_close(spread.softmax(1).flatten(), expected / z.exp().sum())
    # The largest have the probabilities of all scores; at a higher temperature the others get more together.
    torch.testing.assert_close(spread.softmax(1)[0, [1, 4]], z.softmax(1)[0, [1, 4]])
    assert (spread / 4).softmax(1)[0, [1, 4]].sum() < (z / 4).softmax(1)[0, [1, 4]].sum()
    assert (spread * 4).softmax(1)[0, [1, 4]].sum() > (z * 4).softmax(1)[0, [1, 4]].sum()
    for k in (0, 5):
        with pytest.raises(ValueError, match=f'k must be 1 to 4, one less than the classes, got {k}'):
            top_scores(z, k)


def test_a_segmentors_largest_scores_teach_kd_the_same_for_them(cfg_of, tmp_path):
    terms = dict(loss_kd=dict(KD, loss=dict(type='lckd_mm.KDLoss', tau=1.0)))
    stored = dict(folder=str(tmp_path / 'stored'), topk=dict(logits=3))
    runner = run(cfg_of('mmseg', 'run', stored, terms, 2))
    model = runner.model
    batch = model.data_preprocessor(next(iter(runner.train_dataloader)), True)
    given = model.teacher_taps, ['logits'], batch['inputs'], batch['data_samples']
    found, exact = model.teacher(*given)['logits'], FrozenTeacher.__call__(model.teacher, *given)['logits']
    torch.testing.assert_close(found, spread_scores(*top_scores(exact, 3), 11))
    student, classes = torch.randn_like(exact).requires_grad_(), exact.topk(3, 1)[1]
    gradients = [
        torch.autograd.grad(model.terms['loss_kd'].loss([student], [t]), student)[0].gather(1, classes)
        for t in (found, exact)
    ]
    torch.testing.assert_close(*gradients)
    # For each position 3 scores, 3 numbers of classes and the rest, and at most 1 kB beside.
    assert all(0 < p.stat().st_size - 8 * 8 * (3 * 4 + 3 + 4) < 1000 for p in files(tmp_path / 'stored'))


def test_random_augmentation_is_refused_at_the_start_and_the_way_out_works(cfg_of, tmp_path):
    with pytest.raises(ValueError, match='is another one each time that it is loaded; take its random') as caught:
        run(cfg_of('mmseg', 'run', str(tmp_path / 'stored'), augmented=True))
    assert '\n' not in str(caught.value) and not (tmp_path / 'stored').exists()
    assert "dataset=dict(type='lckd_mm.Replayed', dataset=dict(…), variants=8)" in str(caught.value)
    run(cfg_of('mmseg', 'replayed', str(tmp_path / 'stored'), replay=dict(variants=2), iters=1))
    assert len(files(tmp_path / 'stored')) == 32


def test_images_that_the_preprocessor_mixes_are_refused(cfg_of, tmp_path):
    cfg = cfg_of('mmpretrain', 'run', str(tmp_path / 'stored'), replay=dict(variants=2))
    cfg.data_preprocessor.batch_augments = dict(augments=[dict(type='Mixup', alpha=0.8)])
    cfg.data_preprocessor.to_onehot = True
    with pytest.raises(ValueError, match='or the data_preprocessor mixes images or draws their size; remove it'):
        run(cfg)


@pytest.mark.parametrize('host', HOSTS)
def test_replayed_augmentation_trains_as_the_running_teacher(host, cfg_of, passes, tmp_path):
    """With the images of the same run without stored outputs; they are the same in each run."""
    replay, folder = dict(variants=2, seed=5), str(tmp_path / 'stored')
    plain = state(run(cfg_of(host, 'plain', replay=replay, iters=3)))
    first = run(cfg_of(host, 'first', folder, replay=replay, iters=3))
    assert same(state(first), plain) and len(first.train_dataloader.dataset) == 32
    assert 16 < len(files(folder)) <= 32  # flips that are equal are one file
    passes.clear()
    run(cfg_of(host, 'second', folder, replay=dict(replay, variants=1), iters=3))  # of fewer variants all are stored
    assert not passes
    with pytest.raises(ValueError, match=r'is not stored in .* as the student sees it'):
        run(cfg_of(host, 'third', folder, replay=dict(replay, seed=6)))


class Drawn:
    """Three items that are random numbers of all kinds."""

    metainfo = dict(classes=['a'])

    def full_init(self):
        self.full = True

    def get_data_info(self, idx):
        return dict(height=idx)

    def get_cat_ids(self, idx):
        return [idx]

    def __len__(self):
        return 3

    def __getitem__(self, idx):
        return idx, random.random(), np.random.rand(), torch.rand(1).item()


def test_each_image_has_so_many_variants_and_the_training_its_own_random_numbers(monkeypatch):
    monkeypatch.setattr('lckd_mm.data.replayed.DATASETS.build', lambda _: Drawn())
    data, again = Replayed({}, 4), Replayed({}, 4)
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    items = [data[i] for i in range(12)]
    assert [again[i] for i in reversed(range(12))] == items[::-1]
    assert [item[0] for item in items] == [0, 1, 2] * 4
    assert all(len({item[k] for item in items}) == 12 for k in (1, 2, 3))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    # Further variants do not change the first; another seed changes all.
    assert [Replayed({}, 5)[i] for i in range(12)] == items
    assert all(Replayed({}, 4, seed=1)[i][1:] != items[i][1:] for i in range(12))
    assert data.get_data_info(7) == dict(height=1) and data.get_cat_ids(5) == [2] and data.metainfo['classes'] == ['a']
    assert len(data) == len(list(data)) == 12 and data.dataset.full
    for wrong in (dict(variants=0), dict(variants=2, seed=-1)):
        with pytest.raises(ValueError, match=r'Replayed: (variants|seed) must be at least'):
            Replayed({}, **wrong)


def test_batches_of_one_aspect_ratio_and_mosaics_are_replayed(cfg_of, passes, tmp_path):
    cfg = cfg_of('mmdet', 'run', str(tmp_path / 'stored'), replay=dict(variants=2), iters=2)
    cfg.train_dataloader.batch_sampler = dict(type='AspectRatioBatchSampler')
    inner = cfg.train_dataloader.dataset.dataset
    load, (packed) = inner.pipeline[:2], inner.pipeline[-1]
    inner.pipeline = load
    cfg.train_dataloader.dataset.dataset = dict(
        type='MultiImageMixDataset', dataset=inner,
        pipeline=[dict(type='Mosaic', img_scale=(32, 32)), dict(type='RandomFlip', prob=0.5), packed],
    )  # fmt: skip
    runner = run(cfg)
    data = runner.train_dataloader.dataset
    assert len(files(tmp_path / 'stored')) == len(data) == 32
    assert torch.equal(data[3]['inputs'], data[3]['inputs']) and not torch.equal(data[3]['inputs'], data[19]['inputs'])
    passes.clear()
    cfg.work_dir = str(tmp_path / 'again')
    run(cfg)
    assert not passes


def test_images_of_several_sizes_in_a_batch_are_refused_and_the_ways_out_work(cfg_of, scenes, tmp_path):
    import shutil

    shutil.copytree(scenes, tmp_path / 'scenes')
    image = tmp_path / 'scenes' / 'JPEGImages' / 'train_000003.jpg'
    cv2.imwrite(str(image), np.pad(cv2.imread(str(image)), ((0, 0), (0, 32), (0, 0))))

    def made(name):
        cfg = cfg_of('mmdet', name, str(tmp_path / name), dict(loss_kd=KD), 3)
        cfg.train_dataloader.dataset.data_root = str(tmp_path / 'scenes')
        return cfg

    with pytest.raises(ValueError, match='have several sizes, such as 64 x 64 and 64 x 96, and each is padded to'):
        run(made('refused'))
    padded, single = made('padded'), made('single')
    padded.train_dataloader.dataset.pipeline.insert(-1, dict(type='Pad', size=(96, 64)))
    single.train_dataloader.batch_size = 1
    for cfg in (padded, single):
        run(cfg)
        assert len(files(cfg.model.teacher.stored)) == 16


def changed(cfg, key):
    """What another run has otherwise, and the sentence that it ends in."""
    teacher, data = cfg.model.teacher, cfg.train_dataloader.dataset
    if key == 'weights':
        found = torch.load(teacher.checkpoint)
        found['state_dict']['backbone.stem.0.weight'] += 1
        teacher.checkpoint = teacher.checkpoint.replace('.pth', '-other.pth')
        torch.save(found, teacher.checkpoint)
    elif key == 'config':
        teacher.model.backbone.dilations = (1, 1, 1, 2)
    elif key == 'taps':
        cfg.model.taps.stage4 = 'backbone.layer4'
    elif key == 'more':
        cfg.model.terms.loss_more = dict(FITNETS, on='stage3')
    elif key == 'half':
        teacher.stored = dict(folder=teacher.stored, half=True)
    elif key == 'topk':
        teacher.stored = dict(folder=teacher.stored, topk=dict(logits=3))
    elif key == 'autocast':
        cfg.optim_wrapper.update(type='lckd_mm.AutocastOptimWrapper')
    elif key == 'size':
        data.pipeline.insert(-1, dict(type='Resize', scale=(48, 48)))
    elif key == 'data':
        data.ann_file = data.ann_file.replace('train', 'val')
    elif key == 'manifest':
        Path(teacher.stored, 'manifest.json').write_text('[]')
    return cfg


OTHERS = dict(
    weights='are those of another one, with weights=', config='with config=', taps="with taps={'logits'",
    more="with taps={'logits'",
    half='with half=False, and here it is True; set stored to another folder', topk='with topk={}, and here',
    autocast='with autocast=None', size=r"the image '\S*jpg', of 64 x 64, is not stored in",
    data='it is of another data set', manifest='cannot be read .it holds a list.; remove it, and the next run',
)  # fmt: skip


def test_outputs_of_another_teacher_size_or_data_set_are_refused_before_the_first_iteration(cfg_of, tmp_path):
    run(cfg_of('mmseg', 'run', str(tmp_path / 'stored'), iters=1))
    for key, sentence in OTHERS.items():
        cfg = changed(cfg_of('mmseg', key, str(tmp_path / 'stored')), key)
        with pytest.raises(ValueError, match=sentence) as caught:
            run(cfg)
        assert '\n' not in str(caught.value) and not list((tmp_path / key).glob('iter_*.pth')), key
    # The ways out: another folder; what the new data have is added.
    (tmp_path / 'stored' / 'manifest.json').unlink()
    run(changed(cfg_of('mmseg', 'added', str(tmp_path / 'stored'), iters=1), 'data'))
    assert len(files(tmp_path / 'stored')) == 20
    run(changed(cfg_of('mmseg', 'elsewhere', str(tmp_path / 'new'), iters=1), 'weights'))
    # Without the manifest, too, the outputs of one teacher are not taken for those of another.
    (tmp_path / 'stored' / 'manifest.json').unlink()
    run(changed(cfg_of('mmseg', 'beside', str(tmp_path / 'stored'), iters=1), 'weights'))
    assert len(files(tmp_path / 'stored')) == 36


def test_an_image_that_is_met_later_is_refused_by_name(cfg_of, tmp_path):
    class Another(Hook):
        priority = 'VERY_LOW'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 1:
                data_batch['inputs'][1][0, 0, 0] += 1

    with pytest.raises(ValueError, match=r"the image '\S+train_\d+\.jpg', of 64 x 64, is not stored in .* or is augm"):
        run(cfg_of('mmseg', 'run', str(tmp_path / 'stored')), Another())


def test_under_autocast_features_are_stored_in_its_precision(cfg_of, passes, tmp_path):
    def made(name, stored=None):
        cfg = cfg_of('mmseg', name, stored, iters=3)
        cfg.optim_wrapper.type = 'lckd_mm.AutocastOptimWrapper'
        return cfg

    plain = state(run(made('plain')))
    for name in ('first', 'second'):
        assert same(state(run(made(name, str(tmp_path / 'stored')))), plain)
    folder, one = TensorFolder(str(tmp_path / 'stored'), 'teacher'), files(tmp_path / 'stored')[0]
    assert folder.read(one.parent.name + one.stem)['logits#0'].dtype == torch.bfloat16
    assert folder.description()['autocast'] == 'torch.bfloat16'


def test_margins_are_fitted_and_a_monitor_reads_what_terms_read(cfg_of, passes, tmp_path):
    margins = dict(type='lckd_mm.MarginReLU', margin='data', batches=2)
    terms = dict(loss_ofd=dict(FITNETS, loss=dict(type='lckd_mm.OFDLoss'), teacher_connector=margins),
                 loss_lipschitz=dict(loss=dict(type='lckd_mm.LipschitzLoss'), on=['stage3', 'stage4']))  # fmt: skip

    def made(name, stored=None):
        cfg = cfg_of('mmseg', name, stored, terms, iters=2)
        cfg.custom_hooks.append(dict(type='lckd_mm.LipschitzMonitorHook', term='loss_lipschitz'))
        return cfg

    cfg = made('fit', str(tmp_path / 'stored'))
    runner = Runner.from_cfg(cfg)
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, DistillationHook))
    fitted = hook.fit(runner)
    assert len(files(tmp_path / 'stored')) == 16
    plain = state(run(made('plain')))
    passes.clear()
    found = state(run(made('read', str(tmp_path / 'stored'))))
    assert same(found, plain) and not passes and all(torch.equal(x, found[name]) for name, x in fitted.items())


REFUSED = {
    'a key': (dict(stored=dict(file='x')), {}, 'stored must be a folder, or a dict of folder, half, topk, folder at l'),
    'a number': (dict(stored=3), {}, 'stored must be a folder, or a dict'),
    'half': (dict(stored=dict(folder='x', half=1)), {}, 'teacher: stored: half must be True or False, got 1'),
    'k': (dict(stored=dict(folder='x', topk=dict(logits=0))), {}, "topk of 'logits' must be at least 1, got 0"),
    'one k': (dict(stored=dict(folder='x', topk=8)), {}, 'topk must name taps, as in topk=dict(logits=8), got 8'),
    'all': (dict(stored=dict(folder='x', topk=dict(logits=11))), {}, 'has 11 classes, so its topk=11 would leave out '),
    'no tap': (dict(stored=dict(folder='x', topk=dict(score=3))), {}, "topk names no tap 'score', the taps are"),
    'features': (dict(stored=dict(folder='x', topk=dict(stage4=3))), {}, "the tap 'stage4' gives other features"),
    'statistics': (dict(bn='batch'), {}, 'its outputs for an image depend on the other images of the batch'),
    'average': (dict(average=True), {}, 'average=True is the whole teacher, the average of the student, got model='),
    'unlabelled': ({}, dict(images='unlabelled'), "which are those of labelled images; remove stored, or images='un"),
    'a part': ({}, dict(reuse='logits'), "has stored outputs, and reuse runs the teacher; remove stored from the tea"),
    'images': ({}, dict(loss=dict(type='lckd_mm.JacobianLoss')), 'has stored outputs, and JacobianLoss runs the teac'),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_refused_in_a_sentence_while_building(name, scope, cfg_of, tmp_path):
    teacher, term, sentence = REFUSED[name]
    cfg = cfg_of('mmseg', 'run', str(tmp_path / 'stored'), dict(loss_kd=KD | term))
    cfg.model.teacher.update(teacher)
    scope('mmseg')
    with pytest.raises((ValueError, KeyError), match=re.escape(sentence)) as caught:
        build_model(cfg.model, 'mmseg')
    assert '\n' not in str(caught.value)


def test_a_derived_config_removes_it(cfg_of, scope, tmp_path):
    cfg = cfg_of('mmseg', 'run', str(tmp_path / 'stored'))
    cfg.model.teacher.stored = None
    scope('mmseg')
    assert type(build_model(cfg.model, 'mmseg').teacher) is FrozenTeacher


def test_a_config_that_imports_its_classes_is_known_again(scope, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    scope('mmpretrain')
    digests = []
    for _ in range(2):
        cfg = Config.fromfile('configs/digits/kd-pure-python_wrn16-4_wrn10-1_1xb30_digits300.py')
        digests.append(StoredTeacher(str(tmp_path), **cfg.model.teacher)._config)
    cfg.model.teacher.model.head.num_classes = 11
    assert digests[0] == digests[1] != StoredTeacher(str(tmp_path), **cfg.model.teacher)._config


def test_a_tap_that_gives_no_row_for_each_image_is_refused(cfg_of, monkeypatch, tmp_path):
    features = FrozenTeacher._features

    def windows(*args):
        return {name: x.repeat(3, 1, 1, 1) for name, x in features(*args).items()}

    monkeypatch.setattr(FrozenTeacher, '_features', windows)
    with pytest.raises(ValueError, match="'logits': it gives 6 rows for 2 images, which cannot be stored for each"):
        run(cfg_of('mmseg', 'run', str(tmp_path / 'stored'), dict(loss_kd=KD)))
    assert not (tmp_path / 'stored').exists()


def test_a_full_disk_is_foreseen(cfg_of, monkeypatch, tmp_path):
    monkeypatch.setattr('lckd_mm.hooks.stored.shutil.disk_usage', lambda _: SimpleNamespace(free=1e4))
    with pytest.raises(ValueError, match=r'need 0\.00\d+ GB in .*, where 1e-05 are free; make room, or write stored=d'):
        run(cfg_of('mmseg', 'run', str(tmp_path / 'stored')))


def test_a_run_without_the_hook_is_refused(cfg_of, tmp_path):
    cfg = cfg_of('mmseg', 'run', str(tmp_path / 'stored'))
    del cfg.default_hooks.distillation
    with pytest.raises(ValueError, match=r'opened before the first iteration; add default_hooks=dict\(distillation='):
        run(cfg)


def test_one_of_several_teachers_stores_its_own(cfg_of, teachers, passes, tmp_path):
    """A torch module that sees its own normalisation and size, beside a running one."""
    from test_several_teachers import distiller as several

    def made(name, stored=True):
        cfg = cfg_of('mmseg', name, iters=3)
        own = copy.deepcopy(teachers)
        if stored:
            own['scene']['stored'] = str(tmp_path / 'stored')
        cfg.model = several(own)
        return cfg

    plain = state(run(made('plain', False)))
    assert same(state(run(made('first'))), plain)
    passes.clear()
    assert same(state(run(made('second'))), plain) and len(passes) == 8  # of the two others
    own = torch.load(teachers['scene']['checkpoint'])
    torch.save({key: value + 1 for key, value in own.items()}, teachers['scene']['checkpoint'])
    with pytest.raises(ValueError, match=r'^teachers\.scene: the outputs stored in'):
        run(made('third'))


@pytest.fixture(scope='module')
def train():
    yield from forked_trainings('mmseg')


def test_two_ranks_store_together_and_read(train, cfg_of, tmp_path):
    cfg = cfg_of('mmseg', 'plain', iters=4)
    cfg.dump(tmp_path / 'plain.py')
    cfg.model.teacher.stored = str(tmp_path / 'stored')
    cfg.dump(tmp_path / 'stored.py')
    states = []
    for name in ('plain', 'stored'):
        status, text = train(tmp_path / f'{name}.py', tmp_path / f'run-{name}', ranks=2)
        assert status == [0, 0], text[-3000:]
        states.append(read_checkpoint(str(tmp_path / f'run-{name}' / 'iter_4.pth'), 'test')['state_dict'])
    assert same(*states)
    assert len(files(tmp_path / 'stored')) == 16


def test_a_rank_that_fails_ends_both(train, cfg_of, tmp_path):
    cfg = cfg_of('mmseg', 'run', str(tmp_path / 'stored'), iters=4)
    cfg.custom_imports = dict(imports=['rank_failure'])
    cfg.dump(tmp_path / 'run.py')
    status, text = train(tmp_path / 'run.py', tmp_path / 'run', ranks=2)
    assert 0 not in status and text.count('the disk of rank 1 is full') >= 2, text[-3000:]
    assert not (tmp_path / 'stored' / 'manifest.json').exists()
