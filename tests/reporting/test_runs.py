"""Runs found and read: sessions joined, validations placed, configs grouped. The lines are as mmengine writes them."""

import json
import math
import os

import pytest
from mmengine.config import Config

from lckd_mm.reporting.runs import find_runs, group_runs, read_history, teachers_of
from lckd_mm.reporting.seeds import spread

STUDENT = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18), head=dict(type='LinearClsHead'))
TEACHER = dict(STUDENT, backbone=dict(type='ResNet', depth=50))


def trains(*steps, **more):
    return [dict(loss=10.0 - step / 100, loss_kd=1.0, time=0.1, iter=step, step=step, **more) for step in steps]


def write(folder, entries, cfg=None, session=0, tail=''):
    data = folder / f'20260101_00000{session}' / 'vis_data'
    data.mkdir(parents=True)
    (data / 'scalars.json').write_text('\n'.join(map(json.dumps, entries)) + '\n' + tail)
    if cfg is not None:
        Config(cfg).dump(data / 'config.py')
        Config(cfg).dump(folder / 'mine.py')


def loop(iters=100, seed=0, model=STUDENT, **extra):
    return dict(model=model, train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=50),
                randomness=dict(seed=seed), **extra)  # fmt: skip


def distilled(checkpoint, seed=0, weight=1.0):
    terms = dict(loss_kd=dict(loss=dict(type='lckd_mm.KDLoss'), on='logits', weight=weight))
    model = dict(type='lckd_mm.Distiller', student=STUDENT, teacher=dict(model=TEACHER, checkpoint=checkpoint),
                 taps=dict(logits='head.fc'), terms=terms)  # fmt: skip
    return loop(seed=seed, model=model)


def test_a_resumed_run_is_one_curve(tmp_path):
    # Killed at 80 with its last checkpoint at 50; the second session does 60 to 80 again, and better.
    write(tmp_path, [*trains(10, 20, 30, 40, 50), dict(mIoU=1.0, step=50), *trains(60, 70, 80)])
    again = [*(dict(e, loss=0.5) for e in trains(60, 70)), *trains(80, 90, 100), dict(mIoU=2.0, step=100)]
    write(tmp_path, again, session=1)
    history = read_history(tmp_path, val_interval=50, total=100)
    assert [e['step'] for e in history.training] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert [e['loss'] for e in history.training][5:7] == [0.5, 0.5]
    assert history.validation == [dict(mIoU=1.0, step=50), dict(mIoU=2.0, step=100)]
    assert history.sessions == 2


def test_a_validation_before_the_first_step_of_a_resumed_run_stands_at_its_checkpoint(tmp_path):
    # The first session was killed at 80, in 50's validation or after it; by iteration, and as mmdet logs it.
    for folder, step in ((tmp_path / 'iter', 50), (tmp_path / 'epoch', 0)):
        write(folder, [*trains(10, 20, 30, 40, 50), dict(mAP=1.0, step=step), *trains(60, 70, 80)])
        write(folder, [dict(mAP=1.5, step=step), *trains(60, 70, 80, 90, 100), dict(mAP=2.0, step=2 * step)], session=1)
        write(folder, [dict(mAP=2.5, step=2 * step)], session=2)  # killed in the last one
        history = read_history(folder, val_interval=50, total=100)
        assert history.validation == [dict(mAP=1.5, step=50), dict(mAP=2.5, step=100)]
        assert len(history.training) == 10


def test_a_session_of_a_validation_alone_stands_at_the_checkpoint_it_goes_on_from(tmp_path):
    # Killed at 80; the second session makes up for 50's validation, and is killed before its first entry.
    write(tmp_path, [*trains(10, 20, 30, 40, 50, 60, 70, 80)])
    write(tmp_path, [dict(mAP=1.5, step=0)], loop(), session=1)
    assert read_history(tmp_path, val_interval=50, total=100).validation == [dict(mAP=1.5, step=50)]
    (run,) = find_runs([tmp_path])[0]
    assert not run.finished and run.done == 80


def test_a_run_begun_anew_in_the_same_folder_replaces_the_old_one(tmp_path):
    write(tmp_path, [*trains(10, 20, 30, 40, 50), dict(mIoU=1.0, step=50), *trains(60)])
    write(tmp_path, trains(10, 20), session=1)
    history = read_history(tmp_path, val_interval=50, total=100)
    assert [e['step'] for e in history.training] == [10, 20]
    assert history.validation == []


def test_validations_that_were_logged_at_epoch_0_stand_where_they_were_made(tmp_path):
    # mmdet's and mmpretrain's LoggerHook counts validations in epochs, and iteration-based loops stay in epoch 0.
    entries = [*trains(20, 40), dict(mAP=0.1, step=0), *trains(60, 80, 95), dict(mAP=0.2, step=0),
               {'teacher/mAP': 0.8, 'step': 95}]  # fmt: skip
    write(tmp_path, entries)
    history = read_history(tmp_path, val_interval=50, total=95)
    assert history.validation == [dict(mAP=0.1, step=50), dict(mAP=0.2, step=95)]
    assert history.teacher == dict(mAP=0.8)


def test_epochs(tmp_path):
    first = [*trains(10, epoch=1), {'accuracy/top1': 50.0, 'step': 1}, *trains(20, epoch=2),
             {'accuracy/top1': 60.0, 'step': 2}, *trains(30, epoch=3)]  # fmt: skip
    write(tmp_path, first)
    write(tmp_path, [*trains(20, epoch=2), {'accuracy/top1': 61.0, 'step': 2}], session=1)
    history = read_history(tmp_path, by_epoch=True)
    assert [e['step'] for e in history.training] == [10, 20]
    assert [(e['step'], e['accuracy/top1']) for e in history.validation] == [(1, 50.0), (2, 61.0)]


def test_the_cut_line_of_a_killed_run_is_left_out(tmp_path):
    write(tmp_path, trains(10, 20), tail='{"loss": 3.1, "ste')
    assert [e['step'] for e in read_history(tmp_path).training] == [10, 20]


@pytest.fixture
def tree(tmp_path):
    """Two seeds each of a teacher, a student alone, KD, and KD with another weight."""
    for seed in (0, 1):
        root = tmp_path / f'seed{seed}'
        checkpoint = f'{root}/teacher/iter_100.pth'
        configs = {
            'alone': loop(seed=seed), 'teacher': loop(seed=seed, model=TEACHER), 'kd': distilled(checkpoint, seed),
            'more': distilled(checkpoint, seed, 2.0),
        }  # fmt: skip
        entries = [*trains(50, 100), dict(mIoU=10.0 + seed, step=100)]
        for name, cfg in configs.items():
            write(root / name, entries, dict(cfg, work_dir=str(root / name)))
    return tmp_path


def test_runs_are_grouped_by_what_their_configs_say(tree, tmp_path_factory):
    runs, notes = find_runs([tree, tree / 'seed0', tree / 'seed0/kd'])
    assert notes == [] and len(runs) == 8  # named twice, there once
    groups = group_runs(runs)
    assert [(g.title, g.role, [r.seed for r in g.runs]) for g in groups] == [
        ('teacher', 'teacher', [0, 1]), ('alone', 'alone', [0, 1]), ('kd', 'distilled', [0, 1]),
        ('more', 'distilled', [0, 1]),
    ]  # fmt: skip
    teacher, alone, kd, more = groups
    assert kd.teacher is more.teacher is teacher and kd.alone is more.alone is alone
    assert kd.metric == 'mIoU' and kd.values('mIoU') == [10.0, 11.0]
    assert kd.terms == ['loss_kd']
    assert all(run.finished and run.status == 'finished, 100 iterations' for run in runs)
    # tools/test.py dumps the student's config under the same name into the same work_dir; the run stays a distillation.
    Config(loop()).dump(tree / 'seed0/kd/mine.py')
    assert [len(g.runs) for g in group_runs(find_runs([tree])[0])] == [2, 2, 2, 2]
    # A tree that was moved still finds its teacher.
    moved = tmp_path_factory.mktemp('moved') / 'there'
    os.rename(tree, moved)
    assert [g.role for g in group_runs(find_runs([moved])[0])] == ['teacher', 'alone', 'distilled', 'distilled']


def test_a_dumped_pure_python_config_belongs_to_the_runs_of_text_ones(tmp_path):
    """It has import paths in place of names; also in a run whose default scope says where names are from."""

    def by_path(node, package='mmpretrain.models'):
        if not isinstance(node, dict):
            return node
        return {k: f'{package}.{v}' if k == 'type' else by_path(v) for k, v in node.items()}

    kd = distilled(str(tmp_path / 'elsewhere/iter_100.pth'))
    kd['model'].update(
        type='lckd_mm.distillation.Distiller',
        student=by_path(STUDENT),
        teacher=dict(kd['model']['teacher'], model=by_path(TEACHER)),
    )
    kd['train_cfg']['type'] = 'mmengine.runner.IterBasedTrainLoop'
    for name, cfg in (('alone', loop()), ('teacher', loop(model=TEACHER)), ('kd', kd)):
        write(tmp_path / name, [*trains(50), dict(mIoU=1.0, step=50)], dict(cfg, default_scope='mmpretrain'))
    roles = {group.title: group.role for group in group_runs(find_runs([tmp_path])[0])}
    assert roles == dict(teacher='teacher', alone='alone', kd='distilled')


def test_an_unfinished_run_is_said_and_not_counted(tree):
    write(tree / 'seed2' / 'kd', [*trains(50), dict(mIoU=99.0, step=50), *trains(60)], distilled('nowhere.pth', 2))
    kd = group_runs(find_runs([tree])[0])[2]
    assert [r.finished for r in kd.runs] == [True, True, False]
    assert kd.runs[-1].status == 'unfinished, 60 of 100 iterations (interrupted, or still running)'
    assert kd.values('mIoU') == [10.0, 11.0]


def test_groups_are_named_by_folder_or_config_and_told_apart(tmp_path):
    for seed in (0, 1):
        write(tmp_path / f'kd/seed{seed}', trains(100), distilled('t.pth', seed))
    (group,) = group_runs(find_runs([tmp_path / 'kd'])[0])
    assert group.title == 'mine' and len(group.runs) == 2
    for number, weight in enumerate((1.0, 2.0, 3.0)):
        write(tmp_path / f'{number}/kd', trains(100), distilled('t.pth', 0, weight))
    titles = [g.title for g in group_runs(find_runs([tmp_path / f'{number}' for number in range(3)])[0])]
    assert titles == ['kd (mine), 0', 'kd (mine), 1', 'kd (mine), 2']


def test_what_is_no_run_is_a_sentence(tmp_path):
    for folder in (tmp_path / 'none', tmp_path):
        with pytest.raises(FileNotFoundError, match=repr(str(folder))):
            find_runs([folder])
    write(tmp_path / 'good', trains(100), loop())
    write(tmp_path / 'bad', trains(100), loop())
    (tmp_path / 'bad/20260101_000000/vis_data/config.py').write_text('model = (')
    write(tmp_path / 'tested', [], loop())
    runs, notes = find_runs([tmp_path])
    assert [run.folder.name for run in runs] == ['good']
    assert len(notes) == 2 and '/bad' in notes[0] and '/tested' in notes[1]


def test_more_or_less_is_better_by_the_rule_or_the_name(tmp_path):
    def higher(metric, **saving):
        folder = tmp_path / f'{metric}{len(saving)}{saving.get("rule")}'.replace('/', '-')
        cfg = loop(default_hooks=dict(checkpoint=dict(type='CheckpointHook', **saving)))
        write(folder, [*trains(100), {metric: 1.0, 'step': 100}], cfg)
        (group,) = group_runs(find_runs([folder])[0])
        assert group.metric == metric and group.quality == (1.0 if group.higher else -1.0)
        return group.higher

    assert higher('mIoU') and higher('coco/bbox_mAP') and higher('accuracy/top1')
    assert not higher('rmse') and not higher('abs_rel') and not higher('class_bias/cev')
    assert not higher('points', save_best='auto', rule='less') and higher('some', save_best='auto')
    assert not higher('score', save_best='score', rule='less') and higher('rmse', save_best='rmse', rule='greater')


def test_what_is_not_finite_is_said():
    assert spread([0.5, math.nan]) == spread([math.inf]) == 'nan'
    assert spread([1.0, 2.0]) == '1.50 ± 0.71' and spread([]) == ''


def gain_of(tmp_path, alone, kd):
    """Of students with these (seed, score) each."""
    for name, runs, model in (('alone', alone, STUDENT), ('kd', kd, distilled('x/y.pth')['model'])):
        for i, (seed, score) in enumerate(runs):
            cfg = loop(seed=seed, model=model)
            write(tmp_path / f'{i}' / name, [*trains(100), dict(mIoU=score, step=100)], cfg)
    groups = {group.title: group for group in group_runs(find_runs([tmp_path])[0])}
    return groups['kd'].gain


def test_gains_are_paired_by_seeds_that_are_known(tmp_path):
    known = gain_of(tmp_path / 'known', [(0, 60.0), (1, 70.0)], [(0, 65.0), (1, 69.0), (2, 90.0)])
    assert known.mean == pytest.approx(2.0) and known.wins == '1 of 2'
    # Without a seed, or with one twice, nothing is a pair: the difference of the means, and no wins.
    for name, seed in (('none', None), ('twice', 5)):
        runs = gain_of(tmp_path / name, [(seed, 60.0), (seed, 70.0)], [(seed, 69.0), (seed, 71.0)])
        assert runs.mean == pytest.approx(5.0) and runs.wins == ''
    assert gain_of(tmp_path / 'nan', [(0, 60.0)], [(0, math.nan)]) is None


def test_the_teacher_is_the_run_whose_checkpoint_it_is_before_one_of_its_shape(tmp_path):
    own = distilled(f'{tmp_path}/teacher/iter_100.pth')
    own['model']['teacher']['model'] = STUDENT
    for name, cfg in (('alone', loop()), ('kd', own), ('teacher', loop(load_from='pretrained.pth'))):
        write(tmp_path / name, [*trains(100), dict(mIoU=1.0, step=100)], cfg)
    roles = {group.title: group.role for group in group_runs(find_runs([tmp_path])[0])}
    assert roles == dict(teacher='teacher', alone='alone', kd='distilled')


def test_a_teacher_that_was_distilled_itself_is_not_added_to_the_runs(tmp_path):
    for name, cfg, learns in (('plain', loop(), True), ('assistant', distilled(f'{tmp_path}/plain/a.pth'), False)):
        write(tmp_path / name, trains(100), cfg)
        (tmp_path / name / 'a.pth').touch()
        write(tmp_path / 'of' / name, trains(100), distilled(f'{tmp_path}/{name}/a.pth'))
        found = teachers_of(group_runs(find_runs([tmp_path / 'of' / name])[0]))
        assert bool(found) == learns


def test_a_resumed_run_is_of_the_same_config_as_the_others(tmp_path):
    # As the hosts' default runtimes have it, and as a Runner writes it when it goes on.
    write(tmp_path / 'a' / 'run', trains(100), dict(loop(load_from=None, resume=False), randomness={}))
    write(tmp_path / 'b' / 'run', trains(100), dict(loop(seed=1, load_from='work_dirs/b/iter_50.pth', resume=True)))
    (group,) = group_runs(find_runs([tmp_path])[0])
    assert len(group.runs) == 2
