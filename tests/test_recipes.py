"""One line from a config to a distillation: `train STUDENT --teacher TEACHER`, and the same from Python."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from run_helpers import classifier, config, detector, scalars, scenes, segmentor
from small_nets import dino, mask2former, rtmdet_ins, solov2, yolact

import lckd_mm
from lckd_mm.cli import run_tool, train
from lckd_mm.cli import test as run_test
from lckd_mm.hosts import build_model, load_config
from lckd_mm.recipes import default_work_dir


def mobile(width):
    """MobileNetV2: stages that end linearly."""
    net = classifier(width)
    net['backbone'] = dict(type='MobileNetV2', widen_factor=width / 32)
    return net | dict(head=dict(net['head'], in_channels=1280))


def swin(width):
    net = classifier(width)
    net['backbone'] = dict(
        type='SwinTransformer', img_size=48, patch_size=4, window_size=3, pad_small_map=True,
        arch=dict(embed_dims=2 * width, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
    )  # fmt: skip
    return net | dict(head=dict(net['head'], in_channels=16 * width))


def vit(width):
    return dict(
        type='ImageClassifier',
        backbone=dict(type='VisionTransformer', img_size=48, patch_size=16,
                      arch=dict(embed_dims=4 * width, num_layers=4, num_heads=2, feedforward_channels=8)),
        head=dict(type='VisionTransformerClsHead', num_classes=10, in_channels=4 * width,
                  loss=dict(type='CrossEntropyLoss')),
    )  # fmt: skip


def vgg(width):
    net = classifier(width)
    return net | dict(
        backbone=dict(type='MobileNetV3', arch='small_050' if width < 8 else 'small'),
        head=dict(net['head'], in_channels=288 if width < 8 else 576),
    )


def segformer(width):
    net = segmentor(width)
    del net['auxiliary_head']
    net['backbone'] = dict(
        type='MixVisionTransformer', embed_dims=2 * width, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1],
        patch_sizes=[7, 3, 3, 3], sr_ratios=[8, 4, 2, 1], out_indices=(0, 1, 2, 3), mlp_ratio=1,
    )  # fmt: skip
    net['decode_head'] = dict(
        type='SegformerHead', in_channels=[2 * width] * 4, in_index=[0, 1, 2, 3], channels=8, num_classes=11,
        norm_cfg=dict(type='BN'), align_corners=False, loss_decode=dict(type='CrossEntropyLoss'),
    )  # fmt: skip
    return net


def stdc(width):
    net = segmentor(width)
    net['backbone'] = dict(
        type='STDCNet', stdc_type='STDCNet1', in_channels=3, channels=(8, 8, 4 * width, 8 * width, 16 * width),
        bottleneck_type='cat', num_convs=4, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'), with_final_conv=False,
    )  # fmt: skip
    del net['auxiliary_head']
    net['decode_head'].update(in_channels=16 * width, in_index=-1)
    return net


def dilated(width):
    net = segmentor(width)
    net['backbone'].update(strides=(1, 2, 2, 1))
    return net


def unet(width):
    net = segmentor(width)
    net['backbone'] = dict(type='FastSCNN', downsample_dw_channels=(8, 8), global_in_channels=8,
                           global_block_channels=(8, 8, 2 * width), global_block_strides=(2, 2, 1),
                           global_out_channels=2 * width, higher_in_channels=8, lower_in_channels=2 * width,
                           fusion_out_channels=2 * width, out_indices=(0, 1, 2), norm_cfg=dict(type='BN'))  # fmt: skip
    del net['auxiliary_head']
    net['decode_head'].update(in_channels=2 * width, in_index=-1)
    return net


def gfl(width, kind='GFL', head='GFLHead', **more):
    net = detector(width)
    net['type'] = kind
    net['bbox_head'] = dict(
        type=head, num_classes=10, in_channels=8, stacked_convs=1, feat_channels=8, norm_cfg=None,
        anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=4, scales_per_octave=1,
                              strides=[4, 8, 16, 32]), **more,
    )  # fmt: skip
    net['bbox_head'].update(loss_bbox=dict(type='GIoULoss'), loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True))
    net['train_cfg']['assigner'] = dict(type='ATSSAssigner', topk=9)
    return net


def fcos(width):
    net = detector(width)
    net['type'] = 'FCOS'
    net['bbox_head'] = dict(type='FCOSHead', num_classes=10, in_channels=8, stacked_convs=1, feat_channels=8,
                            strides=[4, 8, 16, 32], norm_cfg=None,
                            regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 1e8)))  # fmt: skip
    return net


def rtmdet(width):
    net = load_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py').model.to_dict()
    net['backbone'].update(widen_factor=width / 64, norm_cfg=dict(type='BN'), init_cfg=None)
    widths = [int(c * width / 64) for c in (256, 512, 1024)]
    net['neck'].update(in_channels=widths, out_channels=8, num_csp_blocks=1, norm_cfg=dict(type='BN'))
    net['bbox_head'].update(num_classes=10, in_channels=8, feat_channels=8, norm_cfg=dict(type='BN'))
    net['data_preprocessor'].update(batch_augments=None)
    return net


def faster(width):
    net = load_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model.to_dict()
    own = detector(width)
    net['backbone'] = dict(own['backbone'], frozen_stages=1)
    net['neck'].update(in_channels=own['neck']['in_channels'], out_channels=8)
    net['rpn_head'].update(in_channels=8, feat_channels=8)
    net['roi_head']['bbox_roi_extractor']['out_channels'] = 8
    net['roi_head']['bbox_head'].update(in_channels=8, fc_out_channels=16, num_classes=10)
    return net


OFD = dict(mmpretrain='start:0.9', mmseg='start:0.7', mmdet='start:0.2')
#: Host to students, each with the terms that `auto` gives it.
STUDENTS = {
    'mmpretrain': {
        classifier: ['loss_kd', 'loss_ofd'], mobile: ['loss_kd', 'loss_ofd'], vgg: ['loss_kd'], swin: ['loss_kd'],
        vit: ['loss_kd'],
    },
    'mmseg': {
        segmentor: ['loss_ofd'], dilated: ['loss_ofd'], segformer: ['loss_kd'], stdc: ['loss_kd'], unet: ['loss_kd'],
    },
    'mmdet': {
        detector: ['loss_kd'], gfl: ['loss_kd'], fcos: ['loss_kd'], faster: ['loss_ofd'], rtmdet: ['loss_kd'],
    },
}  # fmt: skip
CASES = [(host, make, terms) for host, nets in STUDENTS.items() for make, terms in nets.items()]


def write(host, root, folder, make, width, name):
    """A config of a net that trains alone."""
    cfg = config(host, root, folder / 'unused', make(width), iters=2)
    cfg.pop('work_dir')
    if 'img_size' in (make(width)['backbone'] or {}):
        cfg.train_dataloader.dataset.pipeline[1]['crop_size'] = 48
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = 2
    cfg.train_dataloader.dataset.metainfo.pop('palette', None)
    path = folder / f'{name}.py'
    cfg.dump(path)
    return path, cfg


@pytest.fixture
def files(tmp_path, scenes, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make_files(host, make, teacher='both', of_teacher=None):
        """The student's config, and the names of a teacher given by one or two files."""
        student, _ = write(host, scenes, tmp_path, make, 4, 'small')
        (tmp_path / 'big').mkdir(exist_ok=True)
        path, cfg = write(host, scenes, tmp_path / 'big', of_teacher or make, 8, 'teacher')
        torch.manual_seed(1)
        model = copy.deepcopy(cfg.model)
        if host == 'mmpretrain':
            model['data_preprocessor'] = cfg.data_preprocessor
        net = build_model(model, host)
        if hasattr(net, 'level_embed'):  # left as the memory was until this
            net.init_weights()
        content = dict(state_dict=net.state_dict(), meta={})
        if teacher == 'meta':
            content['meta'] = dict(cfg=cfg.pretty_text, dataset_meta=dict(cfg.train_dataloader.dataset.metainfo))
            path.unlink()
        torch.save(content, tmp_path / 'big' / 'teacher.pth')
        names = ['big/teacher.pth'] if teacher in ('meta', 'beside') else ['big/teacher.py', 'big/teacher.pth']
        return str(student.relative_to(tmp_path)), names

    return make_files


@pytest.mark.parametrize(
    ('host', 'make', 'terms', 'teacher'),
    [(*case, ('meta', 'beside', 'both')[i % 3]) for i, case in enumerate(CASES)],
    ids=[f'{host}-{make.__name__}' for host, make, _ in CASES],
)
def test_the_one_line_trains(host, make, terms, teacher, files, tmp_path, capsys):
    student, names = files(host, make, teacher)
    assert run_tool(train, [student, '--teacher', *names]) == 0, capsys.readouterr().err
    (path,) = Path('work_dirs/small_auto/recipe').glob('small_auto.py')
    cfg = Config.fromfile(path)
    assert list(cfg.model.terms) == terms
    assert 'loss_ofd' not in terms or cfg.model.terms.loss_ofd.weight == OFD[host]
    logged = [entry for entry in scalars('work_dirs/small_auto') if 'loss' in entry]
    assert len(logged) == 2 and all(0 < entry[name] < float('inf') for entry in logged for name in terms)
    state = torch.load('work_dirs/small_auto/iter_2.pth', weights_only=False)['state_dict']
    assert state.keys() == build_model(Config.fromfile(student).model, host).state_dict().keys()
    text = path.read_text()
    assert all(len(line) <= 120 or '_base_' in line or 'teacher=' in line for line in text.splitlines())
    assert text.count('\n') < 50


def query_detector(width):
    return (
        dino(classes=10)
        | dict(backbone=dict(dino()['backbone'], base_channels=width))
        | dict(neck=dict(dino()['neck'], in_channels=[2 * width, 4 * width, 8 * width]))
    )


def masks(width):
    return mask2former(2, 'mmseg', 4 * width, classes=11)


@pytest.mark.parametrize(
    ('host', 'make', 'key', 'connector'),
    [
        ('mmdet', faster, 'regions', None),
        ('mmdet', query_detector, 'queries', None),
        ('mmseg', masks, 'queries', dict(type='lckd_mm.ConvBN')),
    ],
)
def test_the_scores_of_regions_and_queries_are_those_of_the_same_ones(host, make, key, connector, files, capsys):
    student, names = files(host, make)
    assert run_tool(train, [student, '--teacher', *names, '--recipe', 'kd']) == 0, capsys.readouterr().err
    (path,) = Path('work_dirs/small_kd/recipe').glob('small_kd.py')
    ((name, term),) = Config.fromfile(path).model.terms.items()
    assert term[key] is True and term.get('connector') == connector
    logged = [entry[name] for entry in scalars('work_dirs/small_kd') if name in entry]
    assert len(logged) == 2 and all(0 < value < float('inf') for value in logged)


@pytest.mark.parametrize(
    ('make', 'logits', 'levels'),
    [
        (solov2, 'logits', ['p2', 'p3', 'p4', 'p5']),
        (rtmdet_ins, ['logits1', 'logits2', 'logits3'], ['p3', 'p4', 'p5']),
        (yolact, 'logits', ['p3', 'p4', 'p5', 'p6']),
    ],
)
def test_of_instances_the_class_scores_and_the_pyramid_are_compared(make, logits, levels, files):
    student, names = files('mmdet', make)
    for recipe in ('auto', 'kd'):
        ((name, term),) = lckd_mm.distillation_config(student, names, recipe).model.terms.items()
        assert (name, term.on, term.weight) == ('loss_kd', logits, 'start:0.5')
    ((name, term),) = lckd_mm.distillation_config(student, names, 'features').model.terms.items()
    assert make is not rtmdet_ins or (name, term.on) == ('loss_pkd', levels)


def test_grids_of_other_cells_are_refused(files):
    def coarse(width):
        net = solov2(width)
        net['mask_head']['num_grids'] = [20, 18, 12, 8, 6]
        return net

    student, names = files('mmdet', solov2, of_teacher=coarse)
    with pytest.raises(
        ValueError, match=r'the class scores have \(40, 40\) and \(20, 20\) positions; --recipe features'
    ):
        lckd_mm.distillation_config(student, names, 'kd')


def test_two_decoders_that_read_other_things_have_no_recipe_of_class_scores(files):
    student, names = files('mmseg', masks, of_teacher=segmentor)
    with pytest.raises(ValueError, match=r"recipe 'kd' does not fit .*queries=True needs as teacher"):
        lckd_mm.distillation_config(student, names, 'kd')
    assert list(lckd_mm.distillation_config(student, names).model.terms) == ['loss_ofd']


# ---- what is refused, before anything is written


def refused(capsys, *argv):
    assert run_tool(train, list(argv)) == 1
    assert not Path('work_dirs').exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_teacher_without_a_config_is_refused_with_the_way_out(files, capsys):
    student, (_, checkpoint) = files('mmseg', segmentor, 'both')
    Path('alone').mkdir()
    Path(checkpoint).rename('alone/teacher.pth')
    line = refused(capsys, student, '--teacher', 'alone/teacher.pth')
    assert "'alone/teacher.pth' holds no config, and there is none beside it; name both: --teacher CONFIG" in line
    line = refused(capsys, student, '--teacher', 'big/teacher.py')
    assert "'big/teacher.py' has no weights; name both: --teacher big/teacher.py CHECKPOINT" in line
    assert "no file 'gone.pth'" in refused(capsys, student, '--teacher', 'gone.pth')
    assert 'expected a config, a checkpoint, or one of each' in refused(capsys, student, '--teacher', student, student)


def test_a_teacher_of_another_task_or_architecture_is_refused(files, capsys):
    student, names = files('mmseg', segmentor, of_teacher=dilated)
    torch.save(dict(state_dict=dict(x=torch.zeros(1))), 'other.pth')
    assert "'other.pth' does not fit EncoderDecoder" in refused(capsys, student, '--teacher', names[0], 'other.pth')
    name = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
    net = build_model(load_config(name).model, 'mmpretrain')
    torch.save(dict(state_dict=net.state_dict()), 'other.pth')
    line = refused(capsys, student, '--teacher', name, 'other.pth')
    assert 'teacher: ImageClassifier is a model of mmpretrain and the student, EncoderDecoder, of mmseg' in line


def test_an_unknown_recipe_and_one_that_does_not_fit(files, capsys):
    student, names = files('mmseg', segformer)
    line = refused(capsys, student, '--teacher', *names, '--recipe', 'fast')
    assert "unknown recipe 'fast', expected one of auto, kd, features, london, lipschitz" in line
    line = refused(capsys, student, '--teacher', *names, '--recipe', 'london')
    assert "recipe 'london' does not fit" in line and '--recipe features fits' in line
    assert "'work_dirs/none.py'" in refused(capsys, 'work_dirs/none.py', '--teacher', *names)


def test_classes_are_compared_by_name_where_they_differ(files):
    student, names = files('mmpretrain', classifier, 'meta')
    loaded = torch.load(names[0], weights_only=False)
    loaded['meta']['dataset_meta'] = dict(classes=[str(9 - i) for i in range(10)])
    torch.save(loaded, names[0])
    cfg = lckd_mm.distillation_config(student, names, 'kd')
    assert cfg.model.terms.loss_kd.classes == 'by name'
    loaded['meta']['dataset_meta'] = dict(classes=[f'kind {i}' for i in range(10)])
    torch.save(loaded, names[0])
    assert list(lckd_mm.distillation_config(student, names).model.terms) == ['loss_ofd']
    with pytest.raises(ValueError, match=r"'kd' does not fit .*: the nets score other classes; --recipe features fits"):
        lckd_mm.distillation_config(student, names, 'kd')


# ---- what it writes


def test_a_dry_run_writes_a_config_that_trains_by_itself_and_is_inherited(files, capsys):
    student, names = files('mmseg', segmentor)
    options = ['--teacher', *names, '--recipe', 'london', '--work-dir', 'out', '--dry-run']
    assert run_tool(train, [student, *options]) == 0
    path = Path('out/recipe/small_london.py')
    assert capsys.readouterr().out.endswith(f'train it: lckd_mm train {path} --work-dir out\n')
    assert [p for p in Path('out').rglob('*') if p.is_file()] == [path]
    Path('mine.py').write_text(f"_base_ = ['{path}']\nmodel = dict(terms=dict(loss_ofd=dict(weight=1e-4)))\n")
    assert run_tool(train, ['mine.py']) == 0
    cfg = Config.fromfile('mine.py')
    assert list(cfg.model.terms) == ['loss_ofd', 'loss_lipschitz'] and cfg.model.terms.loss_ofd.weight == 1e-4
    assert run_tool(run_test, ['mine.py', 'work_dirs/mine/iter_2.pth']) == 1  # the student's config has no test data
    assert 'has no test_dataloader' in capsys.readouterr().err
    before = path.read_text()
    assert run_tool(train, [student, *options]) == 0
    assert path.read_text() == before


def test_it_resumes_with_the_same_line(files, capsys):
    student, names = files('mmseg', segmentor)
    line = [student, '--teacher', *names]
    assert run_tool(train, line) == 0
    more = ['--cfg-options', 'train_cfg.max_iters=4', 'param_scheduler.end=4']
    assert run_tool(train, [*line, '--resume', *more]) == 0, capsys.readouterr().err
    assert Path('work_dirs/small_auto/iter_4.pth').exists()
    assert torch.load('work_dirs/small_auto/iter_4.pth', weights_only=False)['meta']['iter'] == 4


def test_from_python_with_overrides(files):
    student, names = files('mmdet', detector)
    cfg = lckd_mm.distillation_config(student, names, 'kd', work_dir='here', train_cfg=dict(max_iters=1))
    assert cfg.train_cfg.max_iters == 1 and cfg.work_dir == 'here'
    assert list(cfg.model.terms) == ['loss_kd'] and cfg.model.terms.loss_kd.weight == 'start:0.5'
    assert default_work_dir(student, 'kd') == 'work_dirs/small_kd'


def test_a_frozen_stage_is_left_out_and_the_log_says_why(files, caplog):
    student, names = files('mmdet', faster)
    cfg = lckd_mm.distillation_config(student, names)
    assert cfg.model.terms.loss_ofd.on == ['stage2', 'stage3', 'stage4']


def test_a_student_in_pure_python_is_written_beside_it(files, tmp_path):
    student, names = files('mmpretrain', classifier)
    text = Path(student).read_text()
    Path('pure.py').write_text(
        'from mmpretrain.models import ImageClassifier\n' + text + "\nmodel['type'] = ImageClassifier\n"
    )
    cfg = lckd_mm.distillation_config('pure.py', names)
    assert Path('work_dirs/pure_auto/recipe/student_auto.py').exists()
    assert cfg.model.student.type.endswith('ImageClassifier')


def test_published_weights_are_found_in_the_hosts_index(files):
    from lckd_mm.recipes.teacher import find_teacher

    source = find_teacher(['mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py'])
    assert source.checkpoint.startswith('https://') and 'gfl_r101_fpn_mstrain_2x_coco' in source.checkpoint
    with pytest.raises(
        ValueError, match=r"index has no weights of 'mmdet::_base_/models/retinanet_r50_fpn.py'; name a"
    ):
        find_teacher(['mmdet::_base_/models/retinanet_r50_fpn.py'])


# ---- what a second look found


def test_what_a_checkpoint_says_is_not_run(files, capsys, tmp_path):
    student, names = files('mmseg', segmentor, 'meta')
    loaded = torch.load(names[0], weights_only=False)
    loaded['meta']['cfg'] = f"__import__('pathlib').Path('{tmp_path}/ran').touch()\n" + loaded['meta']['cfg']
    torch.save(loaded, names[0])
    line = refused(capsys, student, '--teacher', *names)
    assert 'line 1 is more than a value' in line and '--teacher CONFIG' in line
    assert not Path('ran').exists()
    # Nor is a file that lies beside it and is no config.
    del loaded['meta']['cfg']
    torch.save(loaded, names[0])
    Path(names[0]).with_name('prepare.py').write_text(f"open('{tmp_path}/ran', 'w')\n")
    assert 'holds no config, and there is none beside it' in refused(capsys, student, '--teacher', *names)
    assert not Path('ran').exists()


def test_an_edited_file_is_kept(files, capsys):
    student, names = files('mmseg', segmentor)
    line = [student, '--teacher', *names, '--dry-run']
    assert run_tool(train, line) == 0
    path = Path('work_dirs/small_auto/recipe/small_auto.py')
    path.write_text(path.read_text().replace("'start:0.7'", '1e-4'))
    assert run_tool(train, line) == 1
    assert f'{path.name} exists, and differs' in capsys.readouterr().err
    assert '1e-4' in path.read_text()


def test_class_scores_of_other_sizes_are_resized_and_of_other_levels_refused(files, capsys):
    def coarse(width):
        net = segmentor(width)
        net['backbone'].update(strides=(1, 2, 2, 1))
        return net

    student, names = files('mmseg', coarse, of_teacher=segmentor)
    term = lckd_mm.distillation_config(student, names, 'kd').model.terms.loss_kd
    assert term.connector.type == 'lckd_mm.MatchSize'

    def deeper(width):
        net = detector(width)
        net['neck']['num_outs'] = 5
        net['bbox_head']['anchor_generator']['strides'] = [4, 8, 16, 32, 64]
        return net

    shutil.rmtree('work_dirs')
    student, names = files('mmdet', detector, of_teacher=deeper)
    line = refused(capsys, student, '--teacher', *names, '--recipe', 'kd')
    assert 'logits has 4 levels in the student and 5 in the teacher; --recipe features fits' in line


def test_the_options_of_the_command_line_reach_the_student(files, capsys):
    student, names = files('mmseg', segmentor)
    line = refused(capsys, student, '--teacher', *names, '--cfg-options', 'model.decode_head.dropout_ratio=0')
    assert 'write model.student.… for what is the student' in line
    assert run_tool(train, [student, '--teacher', *names, '--dry-run', '--cfg-options', 'work_dir=mine']) == 0
    assert Path('mine/recipe/small_auto.py').exists()


def test_the_config_from_python_has_the_hooks_of_a_distillation(files):
    student, names = files('mmseg', segmentor)
    hooks = lckd_mm.distillation_config(student, names).default_hooks
    assert hooks.distillation.type == 'lckd_mm.DistillationHook' and hooks.resume.type == 'lckd_mm.ResumeHook'


def test_a_config_without_a_model_is_refused(files, capsys):
    _, names = files('mmseg', segmentor)
    Path('none.py').write_text('x = 1\n')
    assert "the config 'none.py' defines no `model`" in refused(capsys, 'none.py', '--teacher', *names)


@pytest.mark.parametrize(
    ('host', 'make', 'weight', 'kept'),
    [
        (
            'mmseg',
            segmentor,
            'start:0.45',
            ['LoadImageFromFile', 'RandomCrop', 'PhotoMetricDistortion', 'PackSegInputs'],
        ),
        ('mmdet', detector, 'start:0.25', ['LoadImageFromFile', 'RandomFlip', 'PackDetInputs']),
        ('mmpretrain', classifier, 'start:0.45', ['LoadImageFromFile', 'RandomCrop', 'PackInputs']),
    ],
)
def test_the_one_line_with_images_without_labels(host, make, weight, kept, files, scenes, capsys):
    """The student's own pipeline without what needs annotations, in a wrapped data set; its own hooks stay."""
    student, names = files(host, make)
    cfg = Config.fromfile(student)
    data = cfg.train_dataloader.dataset
    if host == 'mmseg':
        data.pipeline.insert(2, dict(type='RandomCrop', crop_size=(48, 64), cat_max_ratio=0.75))
    if host == 'mmdet':
        data.pipeline.insert(2, dict(type='MinIoURandomCrop'))
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=data)
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    cfg.dump(student)
    (Path('more') / 'folder').mkdir(parents=True)
    for image in sorted((scenes / 'JPEGImages').glob('*.jpg'))[:5]:
        shutil.copy(image, Path('more') / 'folder')
    assert run_tool(train, [student, '--teacher', *names, '--unlabelled', 'more']) == 0, capsys.readouterr().err
    (path,) = Path('work_dirs/small_auto/recipe').glob('small_auto.py')
    cfg = Config.fromfile(path)
    assert list(cfg.model.terms) == ['loss_kd', 'loss_unlabelled']
    assert [term.weight for term in cfg.model.terms.values()] == [weight] * 2
    assert cfg.model.terms.loss_unlabelled.images == 'unlabelled' and 'images' not in cfg.model.terms.loss_kd
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook', 'lckd_mm.UnlabelledHook']
    hook = cfg.custom_hooks[1]
    assert hook.batch_size == 2 and [step.type for step in hook.dataset.pipeline] == kept
    assert all(len(line) <= 120 or '_base_' in line or 'teacher=' in line for line in path.read_text().splitlines())
    logged = [entry for entry in scalars('work_dirs/small_auto') if 'loss' in entry]
    assert len(logged) == 2 and all(0 < entry['loss_unlabelled'] < float('inf') for entry in logged)


def test_what_images_without_labels_do_not_fit_is_refused(files, scenes, capsys):
    images = ['--unlabelled', str(scenes / 'JPEGImages')]

    def error(student, names, *options):
        assert run_tool(train, [student, '--teacher', *names, *options]) == 1
        assert not Path('work_dirs').exists()
        return capsys.readouterr().err

    student, names = files('mmdet', faster)
    says = error(student, names, *images)
    assert 'does not fit FasterRCNN and FasterRCNN' in says and 'leave out --unlabelled' in says
    student, names = files('mmpretrain', classifier)
    says = error(student, names, *images, '--recipe', 'london')
    assert "the recipe 'london' compares features" in says and '--recipe kd' in says
    assert "no folder 'nowhere'" in error(student, names, '--unlabelled', 'nowhere')
    cfg = Config.fromfile(student)
    (load, crop, pack), cfg.train_dataloader.dataset.pipeline = cfg.train_dataloader.dataset.pipeline, []
    for pipeline, why in (([crop, pack], 'RandomCrop, the first step'), ([load, crop], 'packs no image without')):
        cfg.train_dataloader.dataset.pipeline = pipeline
        cfg.dump(student)
        says = error(student, names, *images)
        assert why in says and 'docs/teachers.md' in says
    with pytest.raises(SystemExit):
        train([student, *images])
    assert '--unlabelled and --dry-run belong to --teacher' in capsys.readouterr().err
