import copy
import os
import pickle
import re

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.structures import PixelData
from torch import nn

from lckd_mm.distillation import FrozenTeacher
from lckd_mm.hosts import build_model, run_once
from lckd_mm.storage.checkpoint import load_strictly, model_weights
from lckd_mm.taps import FeatureTaps

STAGES = dict(stage1='backbone.layer1@preact', stage4='backbone.layer4@preact', logits='decode_head.conv_seg')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def fcn(scope, tiny_fcn):
    scope('mmseg')
    return tiny_fcn()


@pytest.fixture
def net():
    """A small plain model, and its weights."""
    return nn.ModuleDict(
        dict(backbone=nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), head=nn.Sequential(nn.Linear(4, 2)))
    )


def weights_of(net):
    return {name: torch.randn_like(value.float()) for name, value in net.state_dict().items()}


def published(teacher):
    """A copy of the teacher's net whose BatchNorms track their statistics, as in any net."""
    net = copy.deepcopy(teacher.model)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = True
    return net


def write(path, content):
    torch.save(content, path)
    return str(path)


def segmentation_batch(sizes=((32, 32), (20, 28))):
    from mmseg.structures import SegDataSample

    images, samples = [], []
    for h, w in sizes:
        images.append(torch.randint(0, 256, (3, h, w), dtype=torch.uint8))
        truth = PixelData(data=torch.randint(0, 5, (1, h, w)))
        meta = dict(img_shape=(h, w), ori_shape=(h, w), pad_shape=(h, w), scale_factor=(1.0, 1.0), flip=False)
        samples.append(SegDataSample(gt_sem_seg=truth, metainfo=meta))
    return dict(inputs=images, data_samples=samples)


# ---- loading, strictly; forms of files, damaged, hostile and unfit ones are in tests/test_files.py


def test_a_long_list_is_counted(net, tmp_path):
    path = write(tmp_path / 'a.pth', {f'key{i}': torch.zeros(1) for i in range(20)})
    with pytest.raises(ValueError, match=r'20 keys: key0, key1, .*key7 and 12 more'):
        load_strictly(net, path, 'teacher')


@pytest.mark.parametrize('allow', [[r'^head\.', 'extra'], (r'head|extra',), 'head|extra'])
def test_allow_lets_keys_be_missing_or_too_many(net, tmp_path, allow):
    weights = {k: v for k, v in weights_of(net).items() if not k.startswith('head.')} | dict(extra=torch.zeros(1))
    path = write(tmp_path / 'a.pth', dict(state_dict=weights))
    with pytest.raises(ValueError, match=r'head.0.weight, head.0.bias; unexpected extra'):
        load_strictly(net, path, 'teacher')
    load_strictly(net, path, 'teacher', allow)
    assert torch.equal(net['backbone'][0].weight, weights['backbone.0.weight'])
    # Taken letter by letter, a string would match nearly every key.
    path = write(tmp_path / 'b.pth', {k: v for k, v in weights.items() if not k.startswith('backbone')})
    with pytest.raises(ValueError, match=r'missing \d+ keys: backbone.0.weight'):
        load_strictly(net, path, 'teacher', allow)


def test_counts_of_batches_may_be_missing(net, tmp_path):
    weights = {k: v for k, v in weights_of(net).items() if 'num_batches_tracked' not in k}
    load_strictly(net, write(tmp_path / 'a.pth', dict(state_dict=weights)), 'teacher')
    load_strictly(
        net, write(tmp_path / 'b.pth', weights_of(net) | {'x.num_batches_tracked': torch.tensor(1)}), 'teacher'
    )


def test_versions_for_the_hosts_migrations_survive_the_prefix(net, tmp_path):
    wrapped = nn.ModuleDict(dict(module=net))
    weights = model_weights(write(tmp_path / 'a.pth', dict(state_dict=wrapped.state_dict())), 'teacher')
    assert weights._metadata['backbone.1'] == dict(version=2)
    assert set(weights._metadata) == set(net.state_dict()._metadata)


def test_torchvisions_names_fit_mmpretrains_resnet(scope, monkeypatch):
    import torchvision

    weights = {k: torch.randn_like(v.float()) for k, v in torchvision.models.resnet18().state_dict().items()}
    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', lambda *_, **__: weights)
    scope('mmpretrain')
    model = build_model(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=512, loss=dict(type='CrossEntropyLoss')),
        )
    )
    load_strictly(model, 'torchvision://resnet18', 'teacher')
    assert torch.equal(model.backbone.conv1.weight, weights['conv1.weight'])
    assert torch.equal(model.backbone.layer4[1].bn2.running_var, weights['layer4.1.bn2.running_var'])
    assert torch.equal(model.backbone.layer2[0].downsample[0].weight, weights['layer2.0.downsample.0.weight'])
    assert torch.equal(model.head.fc.bias, weights['fc.bias'])


# ---- a frozen net


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ({}, 'teacher: checkpoint is'),
        (dict(checkpoint=''), 'teacher: checkpoint is'),
        (dict(checkpoint='a.pth', bn='train'), "teacher: .*'train'.* eval, batch"),
    ],
)
def test_bad_arguments(fcn, arguments, says):
    with pytest.raises(ValueError, match=says):
        FrozenTeacher(fcn, **arguments)


def test_it_is_frozen_and_loads_once(fcn, save_teacher, tmp_path):
    path = save_teacher(tmp_path / 't.pth', fcn, 'mmseg')
    random_state = torch.get_rng_state()
    teacher = FrozenTeacher(fcn, path)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not any(m.training for m in teacher.model.modules())
    assert not teacher.loaded
    teacher.load()
    assert teacher.loaded
    assert torch.equal(torch.get_rng_state(), random_state)
    saved = torch.load(path)['state_dict']
    assert all(torch.equal(v, saved[k]) for k, v in teacher.model.state_dict().items())
    os.remove(path)
    teacher.load()


def test_a_deep_copy_is_the_same_teacher(fcn):
    teacher = FrozenTeacher(fcn, 'a.pth')
    assert copy.deepcopy(teacher) is teacher
    assert copy.deepcopy([nn.Linear(1, 1), teacher])[1] is teacher


def test_sync_batch_norm_becomes_batch_norm(fcn):
    fcn['backbone']['norm_cfg'] = dict(type='SyncBN')
    kinds = {type(m).__name__ for m in FrozenTeacher(fcn, 'a.pth').model.backbone.modules() if 'Norm' in str(type(m))}
    assert not any('Sync' in kind for kind in kinds)


def test_the_model_may_be_a_config_file_with_a_preprocessor_inside_or_beside_it(tmp_path, tiny_classifier):
    model = tiny_classifier()
    mean = model['data_preprocessor']['mean']
    beside = {key: value for key, value in model.items() if key != 'data_preprocessor'}
    for i, text in enumerate((f'{model!r}', f'{beside!r}\ndata_preprocessor = {model["data_preprocessor"]!r}')):
        path = tmp_path / f'{i}.py'
        path.write_text(f"default_scope = 'mmpretrain'\nmodel = {text}\n")
        teacher = FrozenTeacher(str(path), 'a.pth')
        assert (type(teacher.model).__name__, teacher.scope) == ('ImageClassifier', 'mmpretrain')
        assert teacher.has_preprocessor
        assert teacher.model.data_preprocessor.mean.flatten().tolist() == pytest.approx(mean)


@pytest.fixture
def running(fcn, save_teacher, tmp_path):
    """A loaded teacher with running statistics of its own, and its traced taps."""

    def teacher(bn='eval', taps=STAGES, **model):
        made = FrozenTeacher(fcn | model, save_teacher(tmp_path / 't.pth', fcn, 'mmseg'), bn=bn)
        made.load()
        for module in made.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        taps = FeatureTaps(taps, 'teacher')
        assert taps.trace(made.model, lambda: run_once(made.model, (32, 32), 'tensor')) == set()
        return made, taps

    return teacher


def test_it_gives_its_taps_without_gradient_and_stops_at_the_last(running):
    teacher, taps = running()
    images, heads = torch.randn(2, 3, 32, 32), []
    teacher.model.decode_head.register_forward_hook(lambda *_: heads.append(1))
    teacher.model.decode_head.conv_seg.register_forward_hook(lambda *_: heads.append(1))
    f = teacher(taps, ['stage1', 'stage4'], images, None)
    assert heads == []
    assert list(f) == ['stage1', 'stage4']
    stages = teacher.model.backbone(images)
    for name, output in zip(f, (stages[0], stages[3]), strict=True):
        assert not f[name].requires_grad
        torch.testing.assert_close(f[name].relu(), output, rtol=0, atol=0)
    assert teacher(taps, ['logits'], images, None)['logits'].shape == (2, 5, 4, 4)
    assert heads == [1]


def test_batch_mode_uses_the_statistics_of_the_batch_and_leaves_the_running_ones(running):
    teacher, taps = running(bn='batch')
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    assert all(k in before for k in ('backbone.layer1.0.bn1.running_mean', 'backbone.layer1.0.bn1.num_batches_tracked'))
    images = torch.randn(4, 3, 32, 32)
    f = teacher(taps, ['stage1', 'stage4'], images, None)
    with torch.no_grad():
        stages = published(teacher).train().backbone(images)
    for name, output in zip(f, (stages[0], stages[3]), strict=True):
        torch.testing.assert_close(f[name].relu(), output)
    after = teacher.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items())
    # What a sample gives depends on the others of its batch; not so in evaluation.
    alone = teacher(taps, ['stage4'], images[:2], None)['stage4']
    assert (alone - f['stage4'][:2]).abs().max() > 0.1


def test_eval_mode_uses_the_running_statistics(running):
    teacher, taps = running()
    images = torch.randn(4, 3, 32, 32)
    whole, part = (teacher(taps, ['stage4'], x, None)['stage4'] for x in (images, images[:2]))
    torch.testing.assert_close(whole[:2], part)


@pytest.mark.parametrize('bn', ['eval', 'batch'])
def test_predict_uses_the_running_statistics_and_its_own_preprocessor(running, bn):
    teacher, _ = running(bn=bn)
    batch = segmentation_batch(((32, 32), (32, 32)))
    modes = {m: m.training for m in teacher.model.modules()}
    predicted = teacher.predict(copy.deepcopy(batch), nn.Identity())
    assert {m: m.training for m in teacher.model.modules()} == modes
    expected = published(teacher).eval().test_step(copy.deepcopy(batch))
    for a, b in zip(predicted, expected, strict=True):
        assert torch.equal(a.seg_logits.data, b.seg_logits.data)
        assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)


# ---- another normalisation


OTHER = [
    dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], flip=False),
    dict(mean=[10.0, 20.0, 30.0], std=[5.0, 6.0, 7.0], flip=True),
    dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], flip=False),
    dict(mean=None, std=None, flip=False),
    dict(mean=None, std=None, flip=True),
]


@pytest.fixture
def pair(scope, tiny_fcn, tiny_classifier, tiny_detector):
    """``pair(host, other)``: a student's preprocessor, a teacher with another one, and a batch of two sizes."""

    def make(host, other):
        from mmdet.structures import DetDataSample
        from mmpretrain.structures import DataSample

        scope(host)
        cfg = dict(mmseg=tiny_fcn, mmpretrain=tiny_classifier, mmdet=tiny_detector)[host]()
        order = 'to_rgb' if host == 'mmpretrain' else 'bgr_to_rgb'
        theirs = dict(cfg['data_preprocessor'], mean=other['mean'], std=other['std'], **{order: other['flip']})
        sizes = ((32, 64), (30, 20)) if host == 'mmdet' else ((32, 32), (20, 28))
        batch = segmentation_batch(sizes)
        if host == 'mmpretrain':
            batch['data_samples'] = [DataSample(metainfo=dict(img_shape=size)).set_gt_label(1) for size in sizes]
        elif host == 'mmdet':
            batch['data_samples'] = [DetDataSample(metainfo=dict(img_shape=size)) for size in sizes]
        teacher = FrozenTeacher(dict(cfg, data_preprocessor=theirs), 'a.pth')
        return dict(cfg['data_preprocessor'], **{order: True}), teacher, batch

    return make


@pytest.mark.parametrize('other', OTHER, ids=['bgr', 'any', 'bgr-order-only', 'none', 'none-rgb'])
@pytest.mark.parametrize('host', ['mmseg', 'mmpretrain', 'mmdet'])
def test_the_teacher_sees_what_its_own_preprocessor_would_make(pair, host, other):
    ours, teacher, batch = pair(host, other)
    student = build_model(ours)
    teacher.match_inputs(student)
    seen = student(copy.deepcopy(batch), True)
    expected = teacher.model.data_preprocessor(copy.deepcopy(batch), True)['inputs']
    converted = teacher.convert(seen['inputs'], seen['data_samples'])
    assert converted.shape == expected.shape
    torch.testing.assert_close(converted, expected, rtol=1e-5, atol=1e-4)
    # The padding of the second image, which is 0 on both sides.
    h, w = batch['inputs'][1].shape[1:]
    assert torch.equal(converted[1, :, h:], torch.zeros_like(converted[1, :, h:]))
    assert torch.equal(converted[1, :, :, w:], torch.zeros_like(converted[1, :, :, w:]))
    assert (converted[1, :, :h, :w] != 0).any()


def test_a_normalised_teacher_of_a_student_without_normalisation(pair):
    ours, teacher, batch = pair('mmseg', OTHER[1])
    student = build_model(dict(ours, mean=None, std=None, bgr_to_rgb=False))
    teacher.match_inputs(student)
    seen = student(copy.deepcopy(batch), True)
    expected = teacher.model.data_preprocessor(copy.deepcopy(batch), True)['inputs']
    torch.testing.assert_close(teacher.convert(seen['inputs'], seen['data_samples']), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('theirs', ['same', None])
def test_the_same_or_no_preprocessor_changes_nothing(fcn, theirs):
    student = build_model(fcn['data_preprocessor'])
    model = dict(fcn) if theirs else {k: v for k, v in fcn.items() if k != 'data_preprocessor'}
    teacher = FrozenTeacher(model, 'a.pth')
    teacher.match_inputs(student)
    images = torch.randn(2, 3, 32, 32)
    assert teacher.convert(images, None) is images


def test_without_data_samples_the_whole_image_is_converted(pair):
    ours, teacher, _ = pair('mmseg', OTHER[1])
    teacher.match_inputs(build_model(ours))
    # Black, in the student's units; in the teacher's it is -mean / std.
    mean, std = (torch.tensor(ours[k]).view(1, 3, 1, 1) for k in ('mean', 'std'))
    black = (-mean / std).expand(1, 3, 4, 4)
    expected = -torch.tensor([10 / 5, 20 / 6, 30 / 7]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(teacher.convert(black, None), expected)
    half = teacher.convert(black.bfloat16(), None)
    assert half.dtype == torch.bfloat16


def test_the_features_are_those_of_its_own_inputs(fcn, running):
    other = dict(fcn['data_preprocessor'], mean=[10.0, 20.0, 30.0], std=[5.0, 6.0, 7.0], bgr_to_rgb=False)
    teacher, taps = running(data_preprocessor=other)
    student = build_model(fcn['data_preprocessor'])
    teacher.match_inputs(student)
    batch = segmentation_batch()
    seen = student(copy.deepcopy(batch), True)
    f = teacher(taps, ['stage4'], seen['inputs'], seen['data_samples'])['stage4']
    own = teacher.model.data_preprocessor(copy.deepcopy(batch), True)['inputs']
    torch.testing.assert_close(f.relu(), teacher.model.backbone(own)[3], rtol=1e-4, atol=1e-4)
