"""Hooks, each in a real Runner."""

import math
import re
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image
from run_helpers import (
    HOOK,
    HOSTS,
    STAGES,
    classification_data,
    config,
    detection_data,
    distiller,
    run,
    scalars,
    scenes,
    segmentor,
    teacher_file,
    validation,
)  # fmt: skip

from lckd_mm import hooks
from lckd_mm.functional import transmitting_norm
from lckd_mm.hooks import ConnectorWarmupHook, LossWeightHook, epoch_length
from lckd_mm.registry import HOOKS


def factors(total=100, times=(0, 25, 50, 75, 100), **kwargs):
    hook = LossWeightHook('loss_kd', **kwargs)
    hook.total = total
    return [round(hook.factor_at(t), 6) for t in times]


def test_schedules_by_hand():
    assert factors(schedule='constant', factor=0.3) == [0.3] * 5
    assert factors(schedule='step', milestones=[50, 75], gamma=0.5) == [1, 1, 0.5, 0.25, 0.25]
    assert factors(schedule='linear', begin=25, end=75) == [0, 0, 0.5, 1, 1]
    assert factors(schedule='linear', end=100, start=1.0, stop=0.0) == [1, 0.75, 0.5, 0.25, 0]
    cosine = [0, (1 - math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(math.pi / 4)) / 2, 1]
    assert factors(schedule='cosine', end=100) == [round(c, 6) for c in cosine]
    assert factors(schedule='stop', end=75) == [1, 1, 1, 0, 0]
    # a float between 0 and 1 is a part of the training: LONDON's setting a, a quarter after 60 % of it
    assert factors(total=200, times=(119, 120, 199), schedule='step', milestones=[0.6], gamma=0.25) == [1, 0.25, 0.25]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(schedule='sine'), 'sine'),
        (dict(schedule='linear'), 'end'),
        (dict(schedule='step'), 'milestones'),
        (dict(schedule='constant', factor=-1.0), 'factor'),
        (dict(schedule='constant', by='step'), "'step'"),
        (dict(schedule='linear', begin=-5, end=9), 'begin .*-5'),
        (dict(schedule='linear', end='x'), "end .*'x'"),
        (dict(schedule='step', milestones=5), 'milestones .*5'),
    ],
)
def test_bad_schedules(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LossWeightHook('loss_kd', **kwargs)


def kd_run(scenes, work_dir, teacher_file, hooks, iters=16, **extra):
    teacher, path = teacher_file('mmseg')
    model = distiller('mmseg', segmentor(4), teacher, path, lipschitz=0.5, kd=2.0)
    cfg = config('mmseg', scenes, work_dir, model, iters, custom_hooks=hooks, **extra)
    cfg.default_hooks.distillation = HOOK
    cfg.default_hooks.logger.interval = 1
    return cfg


def test_weight_in_force_is_logged_and_follows_epochs_of_an_iteration_based_loop(scenes, tmp_path, teacher_file):
    # 16 images, 2 a batch: an epoch is 8 iterations
    hook = dict(type='lckd_mm.LossWeightHook', term='loss_kd', schedule='step', by='epoch', milestones=[1], gamma=0.25)
    runner = run(kd_run(scenes, tmp_path / 'a', teacher_file, [hook]))
    assert epoch_length(runner) == 8
    weights = [entry['weight_kd'] for entry in scalars(tmp_path / 'a')]
    assert weights == [2.0] * 8 + [0.5] * 8
    # resumed in the second epoch, the weight is what it would have been
    cfg = kd_run(scenes, tmp_path / 'b', teacher_file, [hook])
    cfg.resume, cfg.load_from = True, str(tmp_path / 'a' / 'iter_10.pth')
    run(cfg)
    assert [entry['weight_kd'] for entry in scalars(tmp_path / 'b')] == [0.5] * 6


def test_weight_scales_the_term(scenes, tmp_path, teacher_file):
    stop = dict(type='lckd_mm.LossWeightHook', term='loss_kd', schedule='stop', end=4)
    run(kd_run(scenes, tmp_path, teacher_file, [stop], iters=6))
    losses = [entry['loss_kd'] for entry in scalars(tmp_path)]
    assert min(losses[:4]) > 0
    # the logged value is a mean over the last 10 iterations: the fifth is that of four terms and a zero
    assert losses[4] == pytest.approx(losses[3] * 4 / 5, rel=1e-4)
    assert losses[5] == pytest.approx(losses[3] * 4 / 6, rel=1e-4)


def test_unknown_term_and_two_schedules_are_refused_before_training(scenes, tmp_path, teacher_file):
    hook = dict(type='lckd_mm.LossWeightHook', term='loss_at', schedule='constant')
    with pytest.raises(ValueError, match=r"'loss_at'.*loss_lipschitz, loss_kd"):
        run(kd_run(scenes, tmp_path / 'a', teacher_file, [hook]))
    twice = [dict(hook, term='loss_kd'), dict(hook, term='loss_kd')]
    with pytest.raises(ValueError, match='2 schedules'):
        run(kd_run(scenes, tmp_path / 'b', teacher_file, twice))


def test_monitor_logs_both_nets_layer_by_layer_to_tensorboard_too(scenes, tmp_path, teacher_file):
    seen = {}

    class Spy(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            runner.model.observers.append(self.look)

        def look(self, student, teacher, connected, losses):
            s, c = student, connected['loss_lipschitz']
            with torch.no_grad():
                seen['student'] = transmitting_norm(s['stage1'], s['stage2']).mean().item()
                seen['teacher'] = transmitting_norm(teacher['stage1'], teacher['stage2']).mean().item()
                seen['connected'] = transmitting_norm(c['stage1'], c['stage2']).mean().item()
            total = sum(v.mean().item() for k, v in losses.items() if 'loss' in k)
            seen['share'] = losses['loss_kd'].item() / total

    cfg = kd_run(scenes, tmp_path, teacher_file, [dict(type='lckd_mm.LipschitzMonitorHook', interval=4)], iters=1)
    cfg.visualizer = dict(
        type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    )
    runner = run(cfg, Spy())
    (entry,) = scalars(tmp_path)
    for side in ('student', 'teacher', 'connected'):
        assert entry[f'sigma_{side}/stage1-stage2'] == pytest.approx(seen[side], rel=1e-5)
    assert entry['share_kd'] == pytest.approx(seen['share'], rel=1e-4)
    assert entry['sigma_gap'] > 0
    assert {k for k in entry if k.startswith('sigma_teacher')} == {
        f'sigma_teacher/stage{i}-stage{i + 1}' for i in (1, 2, 3)
    }
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(tmp_path.glob('*/vis_data'))))
    events.Reload()
    assert 'train/sigma_teacher/stage1-stage2' in events.Tags()['scalars'] or (
        'sigma_teacher/stage1-stage2' in events.Tags()['scalars']
    )
    # the monitor takes itself away between its intervals; the spy stays
    assert all(o.__self__.__class__.__name__ == 'Spy' for o in runner.model.observers)


def test_shares_of_the_gradient_are_those_of_separate_backward_passes(scenes, tmp_path, teacher_file):
    seen = {}

    class Spy(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            runner.model.observers.append(self.look)

        def look(self, student, teacher, connected, losses):
            parts = dict(kd=[losses['loss_kd']], lipschitz=[losses['loss_lipschitz']])
            parts['task'] = [v for k, v in losses.items() if 'loss' in k and k not in connected]
            for name, values in parts.items():
                (grad,) = torch.autograd.grad(sum(values), student['stage3'], retain_graph=True)
                seen[name] = grad.norm().item()

    hook = dict(type='lckd_mm.GradientShareHook', tap='stage3', interval=4)
    run(kd_run(scenes, tmp_path, teacher_file, [hook], iters=1), Spy())
    (entry,) = scalars(tmp_path)
    for name, norm in seen.items():
        assert entry[f'gradient_{name}'] == pytest.approx(norm / sum(seen.values()), rel=1e-4)
    with pytest.raises(ValueError, match=r"unknown tap 'stage9', expected one of stage1"):
        run(kd_run(scenes, tmp_path / 'b', teacher_file, [dict(hook, tap='stage9')], iters=1))


def test_monitoring_changes_nothing(scenes, tmp_path, teacher_file):
    plain = run(kd_run(scenes, tmp_path / 'a', teacher_file, []))
    hooks = [dict(type='lckd_mm.LipschitzMonitorHook', interval=1)]
    watched = run(kd_run(scenes, tmp_path / 'b', teacher_file, hooks))
    for a, b in ((plain.model.state_dict(), watched.model.state_dict()),
                 (plain.model.distillation_state(), watched.model.distillation_state())):  # fmt: skip
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_teacher_check_and_pictures(scenes, tmp_path, teacher_file):
    hooks = [
        dict(type='lckd_mm.TeacherCheckHook'),
        dict(type='lckd_mm.PredictionHook', indices=[0, 2]),
    ]
    extra = validation(scenes)
    cfg = kd_run(scenes, tmp_path / 'a', teacher_file, hooks, iters=4, **extra)
    cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    runner = run(cfg)
    check = next(h for h in runner.hooks if type(h).__name__ == 'TeacherCheckHook')

    # the same metric as the teacher's own plain run gives
    teacher, path = teacher_file('mmseg')
    plain = config('mmseg', scenes, tmp_path / 'plain', teacher, iters=1, **validation(scenes))
    plain.load_from = str(path)
    plain.experiment_name = 'teacher-alone'
    metrics = Runner.from_cfg(plain).val()
    assert check.metrics['mIoU'] == pytest.approx(metrics['mIoU'])
    beside = [e for e in scalars(tmp_path / 'a') if 'teacher/mIoU' in e]
    assert beside[-1]['teacher/mIoU'] == pytest.approx(metrics['mIoU'])

    pictures = sorted(tmp_path.glob('a/*/vis_data/vis_image/prediction_*.png'))
    assert [p.name for p in pictures] == ['prediction_0_4.png', 'prediction_2_4.png']
    image = cv2.imread(str(pictures[0]))
    assert image.shape == (20 + 192 + 22, 4 * (192 + 4), 3)  # titles, panels, a line of class names
    # the first panel is the image itself, enlarged three times by nearest neighbour
    original = cv2.imread(str(scenes / 'JPEGImages' / 'val_000000.jpg'))
    assert (image[20:212:3, 0:192:3] == original).all()
    # in the second, each class of the truth has its palette's colour to the bit, and the rest is paler than the image
    labels = np.array(Image.open(scenes / 'SegmentationClass' / 'val_000000.png'))
    truth, known = image[20:212:3, 196:388:3], (labels > 0) & (labels < 255)
    assert (truth[known] == labels[known][:, None]).all() and (truth[~known] >= 178).all()

    # neither hook disturbs the training
    bare = run(kd_run(scenes, tmp_path / 'b', teacher_file, [], iters=4, **validation(scenes)))
    a, b = runner.model.state_dict(), bare.model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_every_hook_has_an_example_that_can_be_built():
    kinds = [kind for name in hooks.__all__ if isinstance(kind := getattr(hooks, name), type)]
    for kind in kinds:
        (example,) = re.findall(r'Example: ``(\w+ = .*)``', kind.__doc__)
        written = {}
        exec(example, written)
        (cfg,) = written.get('custom_hooks') or written['default_hooks'].values()
        assert type(HOOKS.build(cfg)) is kind


def test_hooks_say_so_on_a_plain_model(scenes, tmp_path):
    cfg = config('mmseg', scenes, tmp_path, segmentor(4), iters=2)
    cfg.custom_hooks = [dict(type='lckd_mm.LipschitzMonitorHook', on=list(STAGES))]
    with pytest.raises(TypeError, match=r'EncoderDecoder, not an lckd_mm\.Distiller'):
        run(cfg)


def predictions_of(host, scenes, tmp_path, teacher_file, data, evaluator, visualizer, **extra):
    teacher, path = teacher_file(host)
    model = distiller(host, HOSTS[host][0](4), teacher, path)
    loader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=data)
    cfg = config(host, scenes, tmp_path, model, iters=2, val_dataloader=loader, val_cfg=dict(type='ValLoop'),
                 val_evaluator=evaluator)  # fmt: skip
    cfg.default_hooks.distillation = HOOK
    cfg.custom_hooks = [dict(type='lckd_mm.TeacherCheckHook'), dict(type='lckd_mm.PredictionHook', indices=[1])]
    cfg.visualizer = dict(type=visualizer, vis_backends=[dict(type='LocalVisBackend')])
    run(cfg)
    (picture,) = tmp_path.glob('*/vis_data/vis_image/prediction_1_2.png')
    return cv2.imread(str(picture))


def test_pictures_of_a_detector(scenes, tmp_path, teacher_file):
    data = detection_data(scenes, 'val')
    data['test_mode'] = True
    data['pipeline'] = [step for step in data['pipeline'] if step['type'] != 'RandomFlip']
    data['pipeline'][-1] = dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))  # fmt: skip
    data['pipeline'].insert(1, dict(type='Resize', scale=(64, 64), keep_ratio=True))
    image = predictions_of(
        'mmdet', scenes, tmp_path, teacher_file, data, dict(type='VOCMetric', metric='mAP'), 'DetLocalVisualizer'
    )
    assert image.shape == (192 + 20, 4 * (192 + 4), 3)
    # boxes of the truth are drawn
    assert (image[20:, :192] != image[20:, 196 : 196 + 192]).any()


def test_pictures_of_a_classifier(scenes, tmp_path, teacher_file):
    data = classification_data(scenes, 'val')
    data['pipeline'] = [step for step in data['pipeline'] if step['type'] != 'RandomCrop']
    image = predictions_of(
        'mmpretrain', scenes, tmp_path, teacher_file, data, dict(type='Accuracy'), 'UniversalVisualizer'
    )
    assert image.shape[1] == 4 * (image.shape[0] - 20 + 4)
    assert (image[20:, :192] != image[20:, 196 : 196 + 192]).any()


# ---- ConnectorWarmupHook


class Weights(Hook):
    """The student's and the connectors' parameters after every iteration."""

    def before_train(self, runner):
        self.seen = [self.now(runner.model)]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(self.now(runner.model))

    @staticmethod
    def now(model):
        return [[p.detach().clone() for p in part.parameters()] for part in (model.student, model.terms)]


@pytest.mark.parametrize(('arguments', 'still'), [(dict(end=3, by='iter'), 3), (dict(end=1), 8), (dict(end=0.25), 3)])
def test_warm_up_moves_the_connectors_alone(scenes, tmp_path, teacher_file, arguments, still):
    weights = Weights()
    hooks = [dict(type='lckd_mm.ConnectorWarmupHook', **arguments)]
    # 16 images by 2 are 8 iterations an epoch; a quarter of 10 iterations are 3.
    run(kd_run(scenes, tmp_path, teacher_file, hooks, iters=10), weights)
    for i, (before, after) in enumerate(pairwise(weights.seen[:-1])):  # the last learning rate is 0
        moved = [any(not torch.equal(a, b) for a, b in zip(*parts)) for parts in zip(before, after)]
        assert moved == [i >= still, True], i


def test_after_the_warm_up_the_optimizer_remembers_nothing_of_it(scenes, tmp_path, teacher_file):
    class Momentum(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            state = runner.optim_wrapper.optimizer.state
            if runner.iter == 1:
                self.kept = [
                    p in state for part in (runner.model.student, runner.model.terms) for p in part.parameters()
                ]

    momentum = Momentum()
    hooks = [dict(type='lckd_mm.ConnectorWarmupHook', end=2, by='iter')]
    runner = run(kd_run(scenes, tmp_path, teacher_file, hooks, iters=3), momentum)
    students = len(list(runner.model.student.parameters()))
    assert momentum.kept == [False] * students + [True] * (len(momentum.kept) - students)


def test_a_warm_up_without_connectors_raises(scenes, tmp_path, teacher_file):
    cfg = kd_run(scenes, tmp_path, teacher_file, [dict(type='lckd_mm.ConnectorWarmupHook')], iters=1)
    cfg.model.terms.loss_lipschitz.connector = None
    with pytest.raises(ValueError, match='no term has connectors to train'):
        run(cfg)


def test_a_warm_up_as_long_as_the_training_raises(scenes, tmp_path, teacher_file):
    cfg = kd_run(scenes, tmp_path, teacher_file, [dict(type='lckd_mm.ConnectorWarmupHook')], iters=8)
    with pytest.raises(ValueError, match=r'end=1.*8 iterations'):
        run(cfg)


def gradient_weight(**options):
    return dict(type='lckd_mm.GradientWeightHook', **(dict(term='loss_kd', tap='stage3', interval=2) | options))


def test_a_term_is_kept_at_its_share_of_the_gradient(scenes, tmp_path, teacher_file):
    """16 images in batches of two: after each 8 iterations the weight follows from the shares before."""
    hook = gradient_weight(share=0.4, band=0.02)
    hooks = [hook, gradient_weight(term='loss_lipschitz', share=0.1), dict(type='lckd_mm.ResumeHook')]
    cfg = kd_run(scenes, tmp_path / 'whole', teacher_file, hooks, iters=32)
    cfg.default_hooks.logger.interval = 1
    runner = run(cfg)
    entries = scalars(tmp_path / 'whole')
    weights = [entry['weight_kd'] for entry in entries]
    # Measured in the first iteration, and then in every second one.
    measured = [[entries[i]['gradient_kd'] for i in range(8) if (start + i + 1) % 2 == 0 or start + i == 0]
                for start, entries in ((s, entries[s : s + 8]) for s in (0, 8, 16, 24))]  # fmt: skip
    expected = [weights[0]]
    for shares in measured[:3]:
        g = sum(shares) / len(shares)
        p = min(max(g, 0.38), 0.42)
        expected.append(expected[-1] * min(max(p * (1 - g) / (g * (1 - p)), 0.1), 10))
    assert weights[::8] == pytest.approx(expected, rel=1e-4) and weights[0] != pytest.approx(weights[8])
    assert all(weights[i] == weights[i // 8 * 8] for i in range(32))
    gaps = [abs(sum(shares) / len(shares) - 0.4) for shares in measured]
    assert gaps[-1] < gaps[0]
    # Interrupted within an epoch, it goes on with the weight and the shares as they were.
    again = kd_run(scenes, tmp_path / 'again', teacher_file, hooks, iters=32)
    again.load_from, again.resume = str(tmp_path / 'whole' / 'iter_20.pth'), True
    state = run(again).model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in runner.model.state_dict().items())


@pytest.mark.parametrize(
    ('options', 'more', 'sentence'),
    [
        (dict(term='loss_x'), [], "unknown term 'loss_x', expected one of"),
        (dict(share=0.005), [], 'share must be above 0.01'),
        (dict(share=0.995), [], 'share \\+ band must be below 1'),
        ({}, [dict(type='lckd_mm.LossWeightHook', term='loss_kd', schedule='constant')], 'a LossWeightHook schedules'),
    ],
)
def test_what_a_share_of_the_gradient_does_not_take(options, more, sentence, scenes, tmp_path, teacher_file):
    with pytest.raises(ValueError, match=f'GradientWeightHook: {sentence}'):
        run(kd_run(scenes, tmp_path, teacher_file, [gradient_weight(**options), *more], iters=2))


def test_a_share_of_the_gradient_and_one_of_the_loss_exclude_each_other(scenes, tmp_path, teacher_file):
    cfg = kd_run(scenes, tmp_path, teacher_file, [gradient_weight()], iters=2)
    cfg.model.terms.loss_kd.weight = 'share:0.3'
    with pytest.raises(
        ValueError, match="the weight of 'loss_kd' follows from its share of the loss; give it a number"
    ):
        run(cfg)
