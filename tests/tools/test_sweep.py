"""tools/bench/sweep.py: published models of several families distil from themselves; it goes on where it ended."""

import json

import pytest
from run_helpers import ROOT, count


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'bench'))
    import sweep

    return sweep


SAMPLE = {
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': ['backbone', 'neck', 'logits'],
    'mmpretrain::mobilenet_v3/mobilenet-v3-small-050_8xb128_in1k.py': ['backbone', 'neck', 'logits'],
    'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py': ['backbone', 'logits'],
    'mmpretrain::deit/deit-tiny_4xb256_in1k.py': ['backbone', 'logits'],
    'mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py': ['backbone', 'logits'],
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': ['backbone', 'neck'],
}


@pytest.mark.parametrize('name', count(list(SAMPLE), list(SAMPLE)[:4]))
def test_a_published_model_distils_from_itself(sweep, name):
    row = sweep.distil(name, large=False)
    assert list(row['taps']) == SAMPLE[name], row
    assert row['kind'] == ('distils' if len(SAMPLE[name]) == 3 else 'refused')
    assert set(row['taps']) | set(row['refused']) == {'backbone', 'neck', 'logits'}


def test_a_second_call_goes_on_where_the_first_ended(sweep, monkeypatch, tmp_path, capsys):
    ran = []
    monkeypatch.setattr(sweep, 'in_a_process', lambda name, args: ran.append(name) or dict(kind='else', why='no'))
    out = tmp_path / 'out.jsonl'
    sweep.main([str(out), '--only', 'mmdet::yolox/yolox_nano'])
    sweep.main([str(out), '--only', 'mmdet::yolox/yolox_nano', 'mmseg::fastscnn', 'mmpretrain::resnet/resnet18_8xb32'])
    assert len(ran) == len(set(ran)) == len(out.read_text().splitlines()) == 3
    assert json.loads(out.read_text().splitlines()[0])['config'] == 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py'
    assert 'else: mmdet::yolox/yolox_nano_8xb8-300e_coco.py: no' in capsys.readouterr().out
