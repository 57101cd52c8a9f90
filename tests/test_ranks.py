"""Several processes on gloo, against one process and one rank against the other."""

import functools
import http.server
import os
import subprocess
import sys
import threading
import time
from inspect import signature
from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODEL_WRAPPERS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from run_helpers import (
    FULL,
    HOOK,
    HOSTS,
    ROOT,
    STAGES,
    classifier,
    config,
    detector,
    distiller,
    forked_trainings,
    scenes,
    segmentor,
    teacher_file,
)  # fmt: skip
from test_dense_methods import every_term, net
from test_reuse import model
from torch import nn

from lckd_mm import cli, contexts, losses
from lckd_mm.hosts import build_model
from lckd_mm.storage.checkpoint import read_checkpoint

CONNECTOR = dict(type='lckd_mm.PlainConnector')
STEPS = 10


def atss(width):
    """A detector whose own loss is normalised by what all ranks count together; RetinaNet's is not."""
    model = detector(width)
    model['bbox_head'] |= dict(
        type='ATSSHead', norm_cfg=dict(type='GN', num_groups=2), loss_bbox=dict(type='GIoULoss', loss_weight=2.0)
    )
    model['train_cfg']['assigner'] = dict(type='ATSSAssigner', topk=4)
    return dict(model, type='ATSS')


MODELS = {'mmseg': segmentor, 'mmpretrain': classifier, 'mmdet': atss}


def without_batch_norm(node):
    """GN for BN, and no dropout, all over a model dict, in place."""
    if isinstance(node, dict):
        if node.get('type') == 'FCNHead':
            node['dropout_ratio'] = 0
        for key, value in node.items():
            if key == 'norm_cfg' and value['type'] == 'BN':
                node[key] = dict(type='GN', num_groups=2)
            else:
                without_batch_norm(value)
    return node


def deterministic(host, root):
    """Data without random augmentation."""
    data = HOSTS[host][1](root, 'train')
    fixed = {'RandomCrop': dict(type='CenterCrop', crop_size=48), 'PhotoMetricDistortion': None, 'RandomFlip': None}
    steps = [fixed.get(step['type'], step) for step in data['pipeline']]
    return dict(data, pipeline=[step for step in steps if step is not None])


def distillation(host, scenes, work_dir, teacher, model=None, **extra):
    """A whole config of LipschitzLoss, KD and OFD; connectors have no BatchNorm, the teacher's has fixed statistics."""
    file = work_dir.parent / 'teacher.pth'
    if not file.exists():
        torch.manual_seed(7)
        torch.save(dict(state_dict=build_model(teacher, host).state_dict()), file)
    whole = distiller(host, model, teacher, file, connector=CONNECTOR)
    if host == 'mmdet':
        whole['taps']['logits'] = 'bbox_head.atss_cls#*'
    # No label is -1: where the ranks' images have more or fewer ignored positions, their mean is not the whole's.
    whole['terms']['loss_kd']['loss'] |= dict(ignore_index=-1)
    whole['terms']['loss_kd']['weight'] = 'share:0.2'  # of all ranks' losses together
    ofd = dict(loss=dict(type='lckd_mm.OFDLoss'), weight=1e-3, connector=CONNECTOR)
    margin = dict(type='lckd_mm.MarginReLU')
    whole['terms'] |= dict(
        loss_ofd=dict(ofd, on=['stage1', 'stage2', 'stage3'], teacher_connector=margin),
        loss_deep=dict(ofd, on='stage4', teacher_connector=dict(margin, margin='data', batches=3)),
    )
    cfg = config(host, scenes, work_dir, whole, iters=STEPS, **extra)
    cfg.train_dataloader.dataset = deterministic(host, scenes)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=STEPS)
    cfg.default_hooks.distillation = HOOK
    return recorded(cfg)


def recorded(cfg):
    cfg.custom_imports = dict(imports=['rank_recorder'])
    cfg.custom_hooks = [dict(type='RankRecorder')]
    return cfg


@pytest.fixture(scope='module')
def forks():
    yield from forked_trainings('mmpretrain')


def train(cfg, path, processes, forks=None, **env):
    """tools/train.py's own function in this process, or in several; what the ranks recorded.

    `make test-all` starts them by tools/dist_train.sh. Forks are a third of the cost.
    """
    cfg.dump(path)
    if processes == 1:
        assert cli.run_tool(cli.train, [str(path)]) == 0
    elif not FULL:
        statuses, text = forks(path, cfg.work_dir, ranks=processes, env=env)
        assert statuses == [0] * processes, text[-3000:]
    else:
        env = os.environ | dict(OMP_NUM_THREADS='1', PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='') | env
        env['PYTHONPATH'] = f'{ROOT / "tests"}'
        command = [ROOT / 'tools' / 'dist_train.sh', path, str(processes)]
        out = subprocess.run(command, capture_output=True, text=True, env=env, timeout=280)
        assert out.returncode == 0, out.stderr[-3000:]
    return [torch.load(f'{cfg.work_dir}/rank{i}.pth') for i in range(processes)]


def differences(one, two):
    """Length of the difference over that of ``one``, of all tensors together, and of the worst one alone."""
    pairs = [((a - b).norm(), a.norm()) for a, b in zip(one, two, strict=True)]
    whole = torch.stack([gap for gap, _ in pairs]).norm() / torch.stack([length for _, length in pairs]).norm()
    return whole.item(), max((gap / length.clamp(min=1e-12)).item() for gap, length in pairs)


def tensors(record, when, kind):
    return [value.double() for key, value in record[when].items() if key.startswith(kind)]


@pytest.fixture
def in_double():
    """For the run in this process what importing in_double.py is for those of the others."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    'host', ['mmpretrain', *(pytest.param(host, marks=pytest.mark.full) for host in ('mmseg', 'mmdet'))]
)
def test_two_processes_with_half_the_batch_each_are_one_with_the_whole(host, scenes, tmp_path, in_double, forks):
    """In float64, in which a small difference is not taken for rounding."""
    make, runs = MODELS[host], {}
    for processes in (1, 2):
        student = without_batch_norm(make(4))
        cfg = distillation(host, scenes, tmp_path / str(processes), make(8), student)
        cfg.custom_imports.imports.append('in_double')
        cfg.train_dataloader.batch_size = 4 // processes
        runs[processes] = train(cfg, tmp_path / f'{processes}.py', processes, forks)
    (one,), (first, second) = runs.values()

    # the same images, whole: half of each batch on each rank
    for whole, left, right in zip(one['images'], first['images'], second['images'], strict=True):
        assert len(whole) == 4 and sorted(whole) == sorted(left + right)
    # the same beginning, to the bit but for a margin that is a sum over images
    for key, value in one['started'].items():
        same = torch.allclose if 'loss_deep.teacher_connectors' in key else torch.equal
        assert same(value, first['started'][key]), key
    # the same student and connectors after ten steps, which have moved them
    for kind in ('student.', 'terms.'):
        end, again, begin = (tensors(*pair, kind) for pair in ((one, 'state'), (first, 'state'), (one, 'started')))
        (gap, worst), (moved, _) = differences(end, again), differences(end, begin)
        print(f'{host} {kind} differs by {gap:.1e}, its worst tensor by {worst:.1e}; it has moved by {moved:.1e}')
        assert gap < 1e-7 and worst < 1e-5 and moved > 1e-2
    # one rank is the other, to the bit: student, connectors, margins
    assert first['state'].keys() == second['state'].keys()
    assert all(torch.equal(v, second['state'][k]) for k, v in first['state'].items())
    assert any(first['state']['terms.loss_deep.teacher_connectors.0.margin'] < 0)
    for record in (first, second):
        assert record['wrapper'] == 'MMDistributedDataParallel' and not record['find_unused_parameters']
        assert record['opened']['loaded teacher.pth'] == 1


@pytest.mark.full
def test_normalisers_statistics_and_masks_of_dense_losses_are_each_rank_s_own(scenes, tmp_path, monkeypatch):
    """One step of two ranks is the mean of the gradients of both halves, in float32, to which GFL's targets hold."""
    terms, taps = every_term('GFL')
    terms['loss_assigned'] = dict(terms['loss_ld'], loss=dict(type='lckd_mm.LDLoss', weigh='assigned'))
    student = without_batch_norm(net('GFL', 4))
    # Without its own losses, whose divisors GFL takes from all ranks.
    for name in ('loss_cls', 'loss_bbox', 'loss_dfl'):
        student['bbox_head'].setdefault(name, dict(type='DistributionFocalLoss'))['loss_weight'] = 0.0
    cfg = recorded(config('mmdet', scenes, tmp_path / 'run', model(tmp_path, terms, taps, student, net('GFL', 8)), 1))
    cfg.train_dataloader.dataset = deterministic('mmdet', scenes)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=1)
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=1.0)
    cfg.default_hooks.distillation, cfg.param_scheduler = HOOK, []
    records = train(cfg, tmp_path / 'run.py', 2)
    started, ended = records[0]['started'], records[0]['state']
    assert all(torch.equal(value, records[1]['state'][key]) for key, value in ended.items())

    init_default_scope('mmdet')
    distiller, data = build_model(cfg.model.to_dict(), 'mmdet'), DATASETS.build(cfg.train_dataloader.dataset)
    distiller.init_weights()
    indices = {Path(data.get_data_info(i)['img_path']).name: i for i in range(len(data))}
    parts = {'student': distiller.student, 'terms': distiller.terms}
    for rank, record in enumerate(records):
        # Both ranks have this seed, and masks depend on it and on the rank.
        torch.manual_seed(3)
        monkeypatch.setattr(contexts, 'get_rank', lambda rank=rank: rank)
        for part, module in parts.items():
            own = {k.removeprefix(f'{part}.'): v for k, v in started.items() if k.startswith(f'{part}.')}
            module.load_state_dict(own)
        half = pseudo_collate([data[indices[name]] for name in record['images'][0]])
        losses = distiller.train().loss(**distiller.data_preprocessor(half, True))
        assert all(losses[name] > 0 for name in terms)
        sum(losses[name] for name in terms).backward()
    names, gradients = zip(
        *((f'{part}.{n}', p.grad) for part, module in parts.items() for n, p in module.named_parameters())
    )
    gap, _ = differences([gradient / 2 for gradient in gradients], [started[name] - ended[name] for name in names])
    print(f'the step of two ranks differs by {gap:.1e} from the mean of the gradients of their halves')
    assert gap < 1e-4


MAPS = [(8, 5, 12, 12), (8, 6, 6, 6), (8, 7, 6, 6)]
# What each loss is shown, and whether the mean of the halves' losses is the whole's.
LOSSES = {
    'KDLoss': ((8, 10), True),
    'KDLoss on maps': ((8, 10, 6, 6), True),
    'KDLoss with ignored pixels': ((8, 10, 6, 6), False),
    'DKDLoss': ((8, 10), True),
    'WSLDLoss': ((8, 10), True),
    'DISTLoss': ((8, 10), False),
    'PartialKDLoss': ((8, 10), True),
    'OFDLoss': (MAPS, True),
    'FitNetsLoss': (MAPS, True),
    'ATLoss': (MAPS, True),
    'FSPLoss': (MAPS, True),
    'ABLoss': (MAPS, True),
    'FTLoss': (MAPS, True),
    'AFDLoss': (MAPS, True),
    'CWDLoss': (MAPS, True),
    'PKDLoss': (MAPS, False),
    'CosineLoss': (MAPS, True),
    'VIDLoss': (MAPS, True),
    'ReviewKDLoss': (MAPS, False),
    'MGDLoss': (MAPS, True),
    'ScoreWeightedLoss': (MAPS, False),
    'BCKDLoss': ((8, 10, 6, 6), False),
    'FGDLoss': (MAPS, True),
    'LipschitzLoss': (MAPS, True),
    'RKDLoss': ((8, 12), False),
    'SPLoss': ((8, 12), False),
}


@pytest.mark.parametrize('case', LOSSES)
def test_which_losses_are_means_over_samples(case):
    """For these alone are the gradients of half batches, averaged over two ranks, those of the whole batch."""
    torch.manual_seed(0)
    (shapes, mean), name = LOSSES[case], case.split()[0]
    shapes = shapes if isinstance(shapes, list) else [shapes]
    kind = getattr(losses, name)
    channels = {key: [5, 6, 7] for key in ('channels', 'student_channels') if key in signature(kind).parameters}
    loss = kind(**channels).double()
    student, teacher = ([torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(2))
    samples = [sample(i, case) for i in range(8)]

    def run(rows):
        ours = [x[rows].clone().requires_grad_() for x in student]
        sides = ([ours, [x[rows] for x in teacher]]) if len(ours) > 1 else (ours[0], teacher[0][rows])
        labelled = 'ignored' in case or name in ('DKDLoss', 'WSLDLoss', 'FGDLoss')
        extras = dict(data_samples=samples[rows]) if labelled else {}
        if name == 'ScoreWeightedLoss':
            extras['scores'] = [x[rows] for x in teacher]
        value = loss(*sides, **extras)
        return value, torch.autograd.grad(value, ours)

    whole, gradients = run(slice(8))
    halves = [run(slice(4)), run(slice(4, 8))]
    average = (halves[0][0] + halves[1][0]) / 2
    assert torch.isclose(average, whole, rtol=1e-9) == mean
    for of_whole, *parts in zip(gradients, *(g for _, g in halves)):
        assert torch.allclose(torch.cat(parts) / 2, of_whole, rtol=1e-7, atol=1e-12) == mean


def sample(i, case):
    """A sample with a label, with a box, or with a label map; later samples have more ignored labels."""
    if case in ('DKDLoss', 'WSLDLoss'):
        return DataSample().set_gt_label(i)
    if 'ignored' in case:
        labels = torch.zeros(1, 6, 6, dtype=torch.int64)
        labels[..., : i // 2] = 255
        return SegDataSample(gt_sem_seg=PixelData(data=labels))
    boxes = InstanceData(bboxes=torch.tensor([[4.0, 4.0, 20.0 + i, 24.0]]))
    return DetDataSample(gt_instances=boxes, metainfo=dict(batch_input_shape=(48, 48)))


class Server(http.server.ThreadingHTTPServer):
    """Files of a folder over HTTP on loopback; each takes a second, and every request is noted."""

    def __init__(self, folder):
        self.requests: list[str] = []
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                time.sleep(1)
                super().do_GET()

            def log_message(self, *_):
                pass

        super().__init__(('127.0.0.1', 0), functools.partial(Handler, directory=str(folder)))


@pytest.fixture
def server(tmp_path):
    (tmp_path / 'files').mkdir()
    with Server(tmp_path / 'files') as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.folder, server.address = tmp_path / 'files', f'http://127.0.0.1:{server.server_address[1]}'
        yield server
        server.shutdown()


def test_ranks_of_their_own_seeds_agree_and_download_the_teacher_once(scenes, tmp_path, teacher_file, server, forks):
    """With BatchNorm, as it is used; a paraphraser and a margin are made from images before the first iteration."""
    teacher, path = teacher_file('mmpretrain')
    path.rename(server.folder / 'teacher.pth')
    model = distiller('mmpretrain', classifier(4), teacher, f'{server.address}/teacher.pth')
    model['terms'] |= dict(
        loss_ft=dict(
            loss=dict(type='lckd_mm.FTLoss'), on='stage3', connector=dict(type='lckd_mm.Translator'),
            teacher_connector=dict(type='lckd_mm.Paraphraser', batches=4),
        ),
        loss_ofd=dict(
            loss=dict(type='lckd_mm.OFDLoss'), on='stage4', weight=1e-3, connector=dict(type='lckd_mm.ConvBN'),
            teacher_connector=dict(type='lckd_mm.MarginReLU', margin='data', batches=4),
        ),
        loss_crd=dict(loss=dict(type='lckd_mm.CRDLoss', samples=16, negatives=8), on='stage4', weight=1e-3),
    )  # fmt: skip
    cfg = recorded(config('mmpretrain', scenes, tmp_path / 'run', model, iters=4))
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=4)
    cfg.randomness = dict(seed=3, diff_rank_seed=True)
    # Else torch's wrapper, made before the weights are initialised, would copy rank 0's connectors to the others.
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', init_sync=False)
    cfg.default_hooks.distillation = HOOK
    first, second = train(cfg, tmp_path / 'run.py', 2, forks, TORCH_HOME=str(tmp_path / 'torch'))
    assert server.requests == ['/teacher.pth']

    # BatchNorm's running statistics are each rank's own, as mmengine leaves the student's, but for the paraphraser's.
    def common(state):
        own = [k for k in state if 'running_' in k and 'teacher_connectors' not in k]
        return {k: v for k, v in state.items() if k not in own}

    for when in ('started', 'state'):
        one, two = common(first[when]), common(second[when])
        assert all(torch.equal(v, two[k]) for k, v in one.items()), [k for k in one if not torch.equal(one[k], two[k])]
    assert any('teacher_connectors.0.encoder' in k for k in one)
    # What the contrastive loss remembers is of the images of both: four batches are a whole epoch.
    assert (first['state']['terms.loss_crd.loss.classes'] >= 0).all()
    # The ranks saw other images before the first iteration, and all sixteen of them between them.
    seen = [{name for name in record['before'] if name.endswith('.jpg')} for record in (first, second)]
    assert [len(s) for s in seen] == [8, 8] and len(seen[0] | seen[1]) == 16


def test_a_fetched_checkpoint_runs_no_code(server, tmp_path, monkeypatch):
    """torch.hub, with which mmengine fetches, would unpickle anything."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    mark = tmp_path / 'mark'

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    torch.save(dict(state_dict={}, extra=Evil()), server.folder / 'evil.pth')
    with pytest.raises(ValueError, match=r'it would run \S*mkdir'):
        read_checkpoint(f'{server.address}/evil.pth', 'teacher')
    assert not mark.exists()
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


FLEXIBLE = 'runner_type=FlexibleRunner'
SHARDED = {
    'FSDPStrategy': [FLEXIBLE, 'strategy.type=FSDPStrategy'],
    'DeepSpeedStrategy': [FLEXIBLE, 'strategy.type=DeepSpeedStrategy'],
    'ColossalAIStrategy': [FLEXIBLE, 'strategy.type=mmengine.ColossalAIStrategy'],
    'DDPStrategy': [FLEXIBLE, 'strategy.type=DDPStrategy'],
    'MMFullyShardedDataParallel': ['model_wrapper_cfg.type=MMFullyShardedDataParallel'],
    'MMSeparateDistributedDataParallel': ['model_wrapper_cfg.type=MMSeparateDistributedDataParallel'],
}


def test_what_shards_or_splits_the_model_is_refused(scenes, tmp_path, teacher_file, capsys):
    teacher, path = teacher_file('mmpretrain')
    model = distiller('mmpretrain', classifier(4), teacher, path)
    config('mmpretrain', scenes, tmp_path / 'run', model).dump(tmp_path / 'config.py')

    def refused(*options):
        assert cli.run_tool(cli.train, [str(tmp_path / 'config.py'), '--cfg-options', *options]) == 1
        error = capsys.readouterr().err
        assert error.startswith('error: ') and error.count('\n') == 1
        assert 'shards, splits or renames the model' in error and 'DDP' in error
        return error

    for kind, options in SHARDED.items():
        assert kind in refused(*options)
    assert not (tmp_path / 'run').exists()


class Whole(nn.Module):
    """What another wrapper than DDP looks like to the hook."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_the_hook_refuses_such_a_wrapper_under_any_train_tool(scenes, tmp_path, teacher_file, monkeypatch):
    monkeypatch.setitem(MODEL_WRAPPERS.module_dict, 'Whole', Whole)
    teacher, path = teacher_file('mmpretrain')
    cfg = config('mmpretrain', scenes, tmp_path / 'run', distiller('mmpretrain', classifier(4), teacher, path))
    cfg.default_hooks.distillation = HOOK
    runner = Runner.from_cfg(cfg)
    runner.model = Whole(runner.model)
    with pytest.raises(TypeError, match='Whole splits the model'):
        runner.call_hook('before_run')


@pytest.mark.full
def test_flexible_runner_distils_on_one_device(scenes, tmp_path):
    student = without_batch_norm(classifier(4))
    strategy = dict(type='SingleDeviceStrategy')
    extra = dict(runner_type='FlexibleRunner', strategy=strategy, env_cfg=dict(cudnn_benchmark=False))
    cfg = distillation('mmpretrain', scenes, tmp_path / 'run', classifier(8), student, **extra)
    (record,) = train(cfg, tmp_path / 'run.py', 1)
    saved = torch.load(tmp_path / 'run' / f'iter_{STEPS}.pth')
    student = {k.removeprefix('student.'): v for k, v in record['state'].items() if k.startswith('student.')}
    assert set(saved['state_dict']) == set(student)
    assert all(torch.equal(v, saved['state_dict'][k]) for k, v in student.items())
    assert len(saved['lckd_mm']['terms']) == sum(k.startswith('terms.') for k in record['state'])
