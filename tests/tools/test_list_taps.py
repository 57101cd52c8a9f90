"""tools/analysis/list_taps.py: what it lists can be tapped."""

import runpy

import pytest
import torch
from mmengine.config import Config
from run_helpers import ROOT
from torch import nn

from lckd_mm import cli
from lckd_mm.hosts import build_model, run_once
from lckd_mm.taps import FeatureTaps
from lckd_mm.taps.listing import list_taps

ALONE = 'configs/demo/fcn_r18-w8_1xb8-digit-scenes-96x96.py'
RETINANET = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'


def test_a_preset_that_the_net_lacks_is_said_below_the_others(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    main = runpy.run_path('tools/analysis/list_taps.py')['main']
    assert cli.run_tool(main, [ALONE, '--backbone', '--neck']) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0] == 'taps = dict(' and lines[-1] == ')'
    assert last.startswith('# --neck: ') and 'it has no neck' in last
    assert cli.run_tool(main, [ALONE, '--neck']) == 1


def listed(model, size=96, gradient=True):
    run = lambda one: run_once(model, (size, size), one.mode, gradient, training=one.training)  # noqa: E731
    return {row.address: row for row in list_taps(model, run, gradient)[0]}


def tapped(model, address, size=96):
    """Record one tap in a real forward with gradient; ValueError where it is refused."""
    taps = FeatureTaps({'tap': address})
    taps.trace(model, lambda: run_once(model, (size, size), 'tensor'))
    with taps.record(model, require_grad=True) as features:
        run_once(model, (size, size), 'tensor', gradient=True)
    return features['tap']


def test_listed_addresses_and_their_notes():
    model = build_model(Config.fromfile(ROOT / ALONE).model, 'mmseg')
    rows = listed(model)
    assert rows['backbone.layer2'].shape == '(1, 16, 12, 12)'
    assert 'backbone.layer2@preact' in rows['backbone.layer2'].note
    assert rows['backbone.layer2.1.relu#-1'].calls == 2
    assert rows['backbone.layer2.1.bn1'].note == 'overwritten, before ReLU: tap backbone.layer2.1.relu@in#0'
    # the addition that overwrites it comes before the ReLU
    assert rows['backbone.layer2.1.bn2'].note == 'overwritten'
    assert rows['backbone.layer2.1.relu@in#-1'].note == 'before ReLU'
    assert rows['backbone[3]'].shape == '(1, 64, 12, 12)'
    assert rows['auxiliary_head.conv_seg'].note == 'only with the loss'
    order = list(rows)
    assert order.index('backbone.layer1') < order.index('backbone.layer2.0.conv1') < order.index('backbone[0]')
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_every_row_that_is_not_refused_by_its_note_can_be_tapped_and_the_others_cannot():
    cfg = Config.fromfile(ROOT / ALONE).model
    cfg.backbone.frozen_stages = 1
    model = build_model(cfg, 'mmseg')
    rows = {a: row for a, row in listed(model).items() if 'only with the loss' not in row.note}
    assert {a for a, row in rows.items() if a.startswith('backbone.layer1') and 'no gradient' not in row.note} == set()
    assert not any('no gradient' in row.note for a, row in rows.items() if a.startswith(('backbone.layer2', 'decode')))
    for address, row in rows.items():
        if 'overwritten' in row.note:
            with pytest.raises(ValueError, match='overwritten'):
                tapped(model, address)
        elif 'no gradient' in row.note:
            with pytest.raises(ValueError, match='carries no gradient'):
                tapped(model, address)
        else:
            assert str(tuple(tapped(model, address).shape)) == row.shape


def test_without_gradient_nothing_is_said_of_it():
    model = build_model(Config.fromfile(ROOT / ALONE).model, 'mmseg')
    assert not any('gradient' in row.note for row in listed(model, gradient=False).values())


class TwoHeads(nn.Module):
    """Gives a dict, a tuple with a frozen map in a list, and, with the loss, runs its head twice more."""

    def __init__(self):
        super().__init__()
        self.stem, self.frozen, self.pair = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1).requires_grad_(False), Pair()
        self.head, self.relu, self.pack = nn.Conv2d(4, 2, 1), nn.ReLU(inplace=True), Pack()

    def forward(self, x, loss=False):
        first, [second] = self.pair(self.stem(x), self.frozen(x))
        out = self.pack(self.relu(self.head(first)))['map']
        return out + self.head(second) + self.head(first) if loss else out


class Pair(nn.Module):
    def forward(self, first, second):
        return first, [second * 2]


class Pack(nn.Module):
    def forward(self, x):
        return {'map': x}


def test_tuples_dicts_and_calls_that_differ_with_the_loss():
    model, image = TwoHeads(), torch.zeros(1, 3, 2, 2)
    found, failures = list_taps(model, lambda one: model(image, one.mode == 'loss'), True)
    assert not failures
    rows = {row.address: row.note for row in found}
    assert rows == {
        'stem': '',
        'frozen': 'no gradient',
        'pair[0]': '',
        'pair[1][0]': 'no gradient',
        'head#-1': 'overwritten, before ReLU: tap relu@in, 3 calls with the loss',
        'relu@in': 'before ReLU',
        'relu': '',
    }


@pytest.fixture
def run_tool(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main = runpy.run_path('tools/analysis/list_taps.py')['main']

    def call(*arguments, fails=False):
        status = cli.run_tool(main, list(arguments))
        out, errors = capsys.readouterr()
        assert status == int(fails), errors
        return errors if fails else out

    return call


def test_the_tool_prints_the_teachers_too(run_tool):
    out = run_tool('configs/lckd_fcn_voc.py', '--teacher', '--size', '64')
    assert 'backbone.layer3.22.relu#-1' in out and 'decode_head.conv_seg' in out


def test_the_tool_takes_a_hosts_own_config_and_filters(run_tool):
    out = run_tool(RETINANET, '--size', '64', '--filter', 'neck[')
    sides = [line.split('│')[4].strip() for line in out.splitlines() if 'neck[' in line]
    assert sides == [f'(1, 256, {side}, {side})' for side in (8, 4, 2, 1, 1)]
    assert 'backbone' not in out
    assert "'nowhere'" in run_tool(RETINANET, '--size', '64', '--filter', 'nowhere', fails=True)


def test_the_tool_says_where_an_image_is_too_small(run_tool):
    error = run_tool('mmpretrain::vgg/vgg11_8xb32_in1k.py', '--size', '32', fails=True)
    assert 'ImageClassifier' in error and '32 x 32 (RuntimeError: ' in error and '--size' in error


def test_the_tool_prints_a_preset_that_can_be_pasted(run_tool):
    out = run_tool(RETINANET, '--student', '--backbone', '--neck', '--logits', '--size', '64')
    pasted = {}
    exec(out, pasted)
    assert pasted['taps'] == {
        **{f'stage{i}': f'backbone.layer{i}@preact' for i in range(1, 5)},
        **{f'p{i + 3}': f'neck[{i}]' for i in range(5)},
        'logits': 'bbox_head.retina_cls#*',
    }
    assert "'backbone.layer1@preact',  # (1, 64, 16, 16), no gradient: frozen\n" in out
    assert "'backbone.layer2@preact',  # (1, 128, 8, 8)\n" in out
