"""tools/analysis/complexity.py: published counts, and what a tiny model's counts must be by hand."""

import json
import runpy

import pytest
import torch
from mmengine.registry import DefaultScope
from run_helpers import ROOT

from lckd_mm.cli import run_tool
from lckd_mm.reporting.costs import figures


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.chdir(ROOT)
    yield runpy.run_path('tools/analysis/complexity.py')['main']
    DefaultScope._instance_dict.clear()


def test_resnets_have_the_published_counts(tool, tmp_path, capsys):
    assert run_tool(tool, ['configs/lckd_resnet_imagenet.py', '--out', str(tmp_path / 'x.json')]) == 0
    figures = json.loads((tmp_path / 'x.json').read_text())
    # torchvision's documentation: 25,557,032 and 60,192,808 parameters, 4.09 and 11.51 G multiply-adds; those leave
    # the normalisations out.
    assert figures['size'] == [224, 224]
    assert figures['student']['parameters'] == 25_557_032
    assert figures['teacher']['parameters'] == 60_192_808
    assert figures['student']['flops'] == pytest.approx(4.09e9, rel=0.01)
    assert figures['teacher']['flops'] == pytest.approx(11.51e9, rel=0.01)
    assert '25,557,032' in capsys.readouterr().out


def test_a_convolution_by_hand():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)

        def forward(self, inputs, mode):
            return self.conv(inputs)

    assert figures(Net(), (8, 6)) == dict(parameters=108, flops=108 * 48, activations=4 * 48)


@pytest.mark.parametrize(
    ('config', 'size'),
    [
        ('configs/lckd_wrn_cifar100.py', [32, 32]),
        ('configs/digits/kd_wrn16-4_wrn10-1_1xb30_digits300.py', [16, 16]),
        ('configs/demo/kd_fcn_r18-w32_fcn_r18-w8_1xb8-digit-scenes-96x96.py', [96, 96]),
        ('configs/demo/kd_retinanet_r18-w32_retinanet_r18-w8_1xb8-digit-scenes-96x96.py', [96, 96]),
    ],
)
def test_the_size_is_that_of_training_and_both_nets_are_timed(tool, tmp_path, config, size):
    arguments = [config, '--out', str(tmp_path / 'x.json'), '--speed', '--rounds', '1']
    assert run_tool(tool, arguments) == 0
    figures = json.loads((tmp_path / 'x.json').read_text())
    assert figures['size'] == size
    for net in set(figures) - {'size', 'device'}:
        assert figures[net]['milliseconds'] > 0
        assert figures[net]['images_per_second'] == pytest.approx(1e3 / figures[net]['milliseconds'])


def test_what_does_not_fit_is_a_sentence(tool, capsys):
    config = 'configs/detection/kd_ssd300-r50_ssd300-r18_8xb8_voc0712.py'
    assert run_tool(tool, [config, '--size', '64', '64']) == 1
    assert 'give --size H W' in capsys.readouterr().err
    assert run_tool(tool, [config, '--rounds', '0']) == 1
    assert '--rounds must be at least 1' in capsys.readouterr().err
