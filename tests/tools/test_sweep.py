"""tools/bench/sweep.py: published models distil from themselves as stored; it goes on where it ended."""

import argparse
import json
import os
import time
from collections import Counter

import pytest
import torch
from doc_helpers import blocks, section
from mmengine.config import Config
from mmengine.registry import DefaultScope
from run_helpers import ROOT, count

from lckd_mm.errors import one_line
from lckd_mm.hosts import build_named_model

ROWS = {
    row['config']: row for row in map(json.loads, (ROOT / 'docs/data/sweep-upstream.jsonl').read_text().splitlines())
}


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'bench'))
    import sweep

    return sweep


# Small ones, of as many kinds as there are.
SAMPLE = [
    'mmdet::yolox/yolox_nano_8xb8-300e_coco.py',
    'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
    'mmpretrain::convnext_v2/convnext-v2-atto_32xb32_in1k.py',
    'mmdet::faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    'mmpretrain::mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py',
    'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmdet::atss/atss_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py',
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py',
    'mmdet::fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.py',
    'mmdet::mask2former_vis/mask2former_r50_8xb2-8e_youtubevis2019.py',
    'mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py',
    'mmdet::rpn/rpn_r50_fpn_1x_coco.py',
    'mmdet::solov2/solov2-light_r18_fpn_ms-3x_coco.py',
    'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    'mmdet::yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py',
    'mmpretrain::deit/deit-tiny_4xb256_in1k.py',
    'mmpretrain::edgenext/edgenext-small_8xb256-usi_in1k.py',
    'mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py',
    'mmpretrain::inception_v3/inception-v3_8xb32_in1k.py',
    'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    'mmpretrain::mobilenet_v3/mobilenet-v3-small_8xb16_cifar10.py',
    'mmpretrain::mobileone/deploy/mobileone-s0_deploy_8xb32_in1k.py',
    'mmpretrain::mobilevit/mobilevit-small_8xb128_in1k.py',
    'mmpretrain::regnet/regnetx-1.6gf_8xb128_in1k.py',
    'mmpretrain::revvit/revvit-small_8xb256_in1k.py',
    'mmpretrain::shufflenet_v1/shufflenet-v1-1x_16xb64_in1k.py',
    'mmpretrain::van/van-tiny_8xb128_in1k.py',
    'mmpretrain::xcit/xcit-nano-12-p8_8xb128_in1k.py',
    'mmseg::bisenetv1/bisenetv1_r18-d32-in1k-pre_4xb4-160k_coco-stuff164k-512x512.py',
    'mmseg::cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py',
    'mmseg::erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024.py',
    'mmseg::maskformer/maskformer_swin-t_upernet_8xb2-160k_ade20k-512x512.py',
    'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
    'mmseg::pspnet/pspnet_r18-d8_4xb4-80k_isaid-896x896.py',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'mmseg::segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py',
    'mmseg::stdc/stdc1_in1k-pre_4xb12-80k_cityscapes-512x1024.py',
]


@pytest.mark.parametrize('name', count(SAMPLE, SAMPLE[:5]))
def test_a_published_model_distils_from_itself_as_stored(sweep, name):
    row = sweep.distil(name, large=False)
    assert {key: row.get(key) for key in ('kind', 'why', 'taps')} == {
        key: ROWS[name].get(key) for key in ('kind', 'why', 'taps')
    }


def test_the_documented_counts_are_those_of_the_stored_rows(sweep):
    text = (ROOT / 'docs' / 'reliability.md').read_text()
    counts = Counter((row['config'].partition('::')[0], row['kind']) for row in ROWS.values())
    for host in sweep.HOSTS:
        assert f'| {host} | {" | ".join(str(counts[host, kind]) for kind in sweep.KINDS)} |' in text
    assert not [name for name, row in ROWS.items() if row['kind'] == 'else']


FAMILIES = [
    'mmpretrain::resnet/resnet18_8xb32_in1k.py',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'mmpretrain::mobilenet_v3/mobilenet-v3-small_8xb128_in1k.py',
    'mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py',
    'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
    'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
    'mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',
    'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py',
    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'mmdet::faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
]


@pytest.mark.parametrize('name', count(FAMILIES, FAMILIES[:2]))
def test_the_block_of_own_configs_distils_a_published_model(sweep, name, tmp_path, monkeypatch):
    model, scope = sweep.model_for_a_step(name)
    page = (ROOT / 'docs/own-config.md').read_text()
    (block,) = blocks(section(page, dict(mmseg='mmsegmentation', mmdet='mmdetection').get(scope, scope)))
    torch.manual_seed(1)
    plain = build_named_model(model, 'student', scope)
    with DefaultScope.overwrite_default_scope(scope):
        plain.init_weights()
        size = sweep.smallest_size(plain, model)
        torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'teacher.pth')
        for file in ('my_student.py', 'my_teacher.py'):
            Config(dict(model=model)).dump(tmp_path / file)
        (tmp_path / 'my_distillation.py').write_text(block)
        monkeypatch.chdir(tmp_path)
        config = Config.fromfile('my_distillation.py').model
        losses = sweep.train_step(dict(config, dry_run_size=size), scope, size)
    assert len(config.terms) == 2 and all(losses[term] > 0 for term in config.terms)


def test_a_second_call_goes_on_where_the_first_ended(sweep, monkeypatch, tmp_path, capsys):
    ran = []
    monkeypatch.setattr(sweep, 'in_a_process', lambda name, args: ran.append(name) or dict(kind='else', why='no'))
    out, some = tmp_path / 'out.jsonl', ['mmdet::yolox/yolox_nano', 'mmseg::fastscnn']
    sweep.main([str(out), '--only', some[0]])
    sweep.main([str(out), '--only', *some, 'mmpretrain::resnet/resnet18_8xb32'])
    assert len(ran) == len(set(ran)) == len(out.read_text().splitlines()) == 3
    assert json.loads(out.read_text().splitlines()[0])['config'] == 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py'
    assert 'else: mmdet::yolox/yolox_nano_8xb8-300e_coco.py: no' in capsys.readouterr().out
    sweep.main([str(out), '--only', *some, '--again', 'host'])
    assert len(ran) == 3
    sweep.main([str(out), '--only', some[1], '--again', 'else'])
    assert len(ran) == 4 and ran[3] in ran[:3] and len(out.read_text().splitlines()) == 3


def test_folders_take_turns_with_their_small_models_first(sweep):
    small, large = ['a::p/q/p_tiny.py', 'a::q/q_r50.py'], ['a::p/p_b1.py', 'a::q/q_r101.py', 'a::p/p_large.py']
    assert sweep.in_turn([*reversed(large), *reversed(small)]) == [*small, *large]


def too_much(name, large):
    try:
        torch.zeros(2**35)
    except RuntimeError as error:
        return dict(kind='host', why=one_line(error))


@pytest.mark.parametrize(
    'distil, kind, why',
    [
        (lambda name, large: dict(kind='distils', why=name), 'distils', 'a name'),
        (lambda name, large: os._exit(3), 'else', 'its process ended with 3'),
        (lambda name, large: os.kill(os.getpid(), 9), 'else', 'its process ended with -9'),
        (lambda name, large: time.sleep(60), 'else', 'more than 2 s'),
        (lambda name, large: 1 / 0, 'else', 'ZeroDivisionError: division by zero'),
        (too_much, 'large', 'more than 8 GB'),
    ],
)
def test_what_ends_the_process_of_a_config_is_its_row(sweep, monkeypatch, distil, kind, why):
    monkeypatch.setattr(sweep, 'distil', distil)
    start = time.perf_counter()
    row = sweep.in_a_process('a name', argparse.Namespace(timeout=2, memory=8, large=False))
    assert row['kind'] == kind and why in row['why']
    assert time.perf_counter() - start < 30
