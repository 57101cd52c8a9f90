"""Export: the files run, alone, and compute what the model does."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import inference_model
from run_helpers import FULL, HOSTS, ROOT, scenes, segmentor
from small_nets import mask2former, of_one_size

from lckd_mm.cli.ending import _export_flags
from lckd_mm.config import loads_files, plain_model, size_in_tests
from lckd_mm.errors import sigterm_raises
from lckd_mm.hosts import WholePrediction, build_model, image_channels
from lckd_mm.reporting.costs import figures
from lckd_mm.storage.export import PlainForward, _compared, _largest, export

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime', reason='needs onnx, onnxscript and onnxruntime')
OUTPUTS = {'mmpretrain': [(1, 10)], 'mmseg': [(1, 11, 8, 8)], 'mmdet': 8}


@pytest.fixture
def model(scope):
    def build(host):
        scope(host)
        torch.manual_seed(3)
        cfg = HOSTS[host][0](8)
        if host == 'mmpretrain':
            cfg['data_preprocessor'] = HOSTS[host][3]['data_preprocessor']
        built = build_model(cfg, host)
        built.init_weights()
        return built.eval()

    return build


def run(path, images):
    """What a file gives, run by nothing of ours."""
    if path.suffix == '.onnx':
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        return [torch.from_numpy(x) for x in session.run(None, {'inputs': images.numpy()})]
    return list(torch.export.load(path).module()(images))


def same_outputs(path, net, images):
    with torch.no_grad():
        expected = PlainForward(net)(images)
    for x, y in zip(run(path, images), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['onnx', 'pt2'])
@pytest.mark.parametrize('host', HOSTS)
def test_every_host_in_both_formats(host, kind, model, tmp_path):
    net, path = model(host), tmp_path / f'net.{kind}'
    done = export(PlainForward(net), path, (64, 64), fixed=not FULL)
    assert (len(done.shapes) if host == 'mmdet' else done.shapes) == OUTPUTS[host]
    assert done.worst < 1e-5
    # Compared once more, by other images and by nothing of ours.
    same_outputs(path, net, torch.randn(1, 3, 64, 64))
    if kind == 'onnx' and FULL:
        assert done.free == ('batch', 'height', 'width')
        same_outputs(path, net, torch.randn(5, 3, 97, 131))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_any_batch(model, tmp_path):
    net, path = model('mmpretrain'), tmp_path / 'net.pt2'
    done = export(PlainForward(net), path, (32, 32), metadata=dict(classes=['0', '1']))
    assert 'batch' in done.free
    same_outputs(path, net, torch.randn(5, 3, 32, 32))
    torch.export.load(path, extra_files=(files := {'lckd_mm.json': ''}))
    facts = dict(free=list(done.free), multiple_of=done.step)
    assert json.loads(files['lckd_mm.json']) == dict(classes=['0', '1'], **facts)


def test_other_sizes_are_others():
    for size, step in (((32, 32), 32), ((224, 224), 1), ((97, 131), 32), ((16, 16), 1)):
        (two, own), *others = _compared(size, {0: 'batch', 2: 'height', 3: 'width'}, step)
        assert (two, own) == (2, size) and [n for n, _ in others] == [1, 3]
        for other in (hw for _, hw in others):
            assert all(x != y and x % step == 0 for x, y in zip(other, size))


@pytest.mark.full
def test_a_net_for_images_of_one_size_takes_any_batch(scope, tmp_path):
    scope('mmseg')
    net, path = build_model(of_one_size()).eval(), tmp_path / 'net.pt2'
    done = export(PlainForward(net), path, (96, 96))
    assert done.free == ('batch',) and done.why
    same_outputs(path, net, torch.randn(5, 3, 96, 96))


def shallow(**preprocessor):
    """A segmentor of two stages."""
    cfg = segmentor(8)
    del cfg['auxiliary_head']
    cfg['backbone'] |= dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    cfg['decode_head'] |= dict(in_channels=16, in_index=1)
    cfg['data_preprocessor'] |= preprocessor
    return cfg


def padded():
    cfg = shallow(test_cfg=dict(size_divisor=32))
    cfg['decode_head']['align_corners'] = True
    return cfg


def padded_to_a_size():
    return shallow(test_cfg=dict(size=(128, 160)), bgr_to_rgb=False)


def binary():
    cfg = shallow()
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    cfg['decode_head'] |= dict(num_classes=2, out_channels=1, threshold=0.5, loss_decode=loss)
    return cfg


@pytest.mark.parametrize(
    ('cfg', 'kind'),
    [
        (padded, 'onnx'),
        pytest.param(padded, 'pt2', marks=pytest.mark.full),
        pytest.param(padded_to_a_size, 'onnx', marks=pytest.mark.full),
        pytest.param(binary, 'onnx', marks=pytest.mark.full),
    ],
)
def test_end_to_end_gives_each_pixel_the_hosts_class(cfg, kind, scenes, scope, tmp_path):
    scope('mmseg')
    torch.manual_seed(3)
    net, path = build_model(cfg()).eval(), tmp_path / f'net.{kind}'
    # So that each image has several classes.
    net.decode_head.conv_seg.weight.data.normal_()
    done = export(WholePrediction(net), path, (64, 64), metadata=dict(channel_order='BGR', size=(64, 64)))
    assert done.shapes == [(1, 64, 64)]
    pictures = [cv2.imread(file) for file in sorted(map(str, (scenes / 'JPEGImages').iterdir()))[:2]]
    sizes = [(64, 64)]
    if kind == 'onnx':
        assert done.free == ('batch', 'height', 'width')
        sizes += [(97, 131), (64, 45)]
        file = onnx.load(path)
        assert [x.name for x in file.graph.output] == ['classes']
        facts = dict(channel_order='BGR', size=[64, 64], free=['batch', 'height', 'width'], multiple_of=1)
        assert {p.key: json.loads(p.value) for p in file.metadata_props} == facts
    net.cfg = Config(dict(test_pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]))
    for size in sizes:
        images = [cv2.resize(picture, size[::-1]) for picture in pictures]
        expected = torch.cat([sample.pred_sem_seg.data for sample in inference_model(net, images)])
        assert len(expected.unique()) > 1
        got = run(path, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous())
        assert torch.equal(got[0], expected.long())


@pytest.mark.full
@pytest.mark.parametrize('kind', ['onnx', 'pt2'])
def test_end_to_end_gives_the_hosts_probabilities(kind, model, tmp_path):
    net, path = model('mmpretrain'), tmp_path / f'net.{kind}'
    export(WholePrediction(net, torch.float32), path, (32, 32))
    images = torch.rand(5, 3, 32, 32) * 255
    with torch.no_grad():
        expected = torch.stack([sample.pred_score for sample in net.test_step(dict(inputs=list(images)))])
    torch.testing.assert_close(run(path, images)[0], expected, rtol=1e-4, atol=1e-5)


def test_what_has_no_end_is_refused_with_a_way(scope, model):
    with pytest.raises(ValueError, match=r'boxes of RetinaNet .* without --end-to-end, .* mmdeploy'):
        WholePrediction(model('mmdet'))
    scope('mmseg')
    cfg = segmentor(4) | dict(test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(16, 16)))
    with pytest.raises(ValueError, match=r"sliding windows, .* mode='whole'"):
        WholePrediction(build_model(cfg))


def test_scores_tell_where_every_pixel_has_one_class(scope, tmp_path):
    scope('mmseg')
    net = build_model(shallow()).eval()
    net.decode_head.conv_seg.bias.data[3] = 50.0
    whole, size = WholePrediction(net), (64, 64)
    images = whole.images(1, size, torch.Generator())
    whole.normalisation = (*whole.normalisation[:2], False)  # swapped channels
    (scored,) = whole.checks()
    with torch.no_grad():
        assert whole.difference(list(whole(images)), images) == 0
        assert scored.difference(list(scored(images)), images) > 1e-4
    with pytest.raises(ValueError, match='differ from those of EncoderDecoder'):
        export(whole, tmp_path / 'net.pt2', size, fixed=True)


def test_not_a_number_differs(model):
    net = PlainForward(model('mmdet'))
    images = net.images(1, (64, 64), torch.Generator())
    with torch.no_grad():
        outputs = list(net(images))
        assert net.difference(outputs, images) == 0
        outputs[1] = outputs[1] * float('nan')
        assert not net.difference(outputs, images) <= 1e9
    assert math.isnan(_largest([1e-7, float('nan')]))


def test_a_terminated_export_leaves_no_draft(model, tmp_path):
    class Terminated(PlainForward):
        def images(self, *args):
            assert list(tmp_path.iterdir())
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(SystemExit) as end, sigterm_raises():
        export(Terminated(model('mmpretrain')), tmp_path / 'net.pt2', (32, 32))
    assert end.value.code == 143 and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_classifier_of_several_labels_is_refused_with_a_way(scope):
    scope('mmpretrain')
    cfg = HOSTS['mmpretrain'][0](4)
    cfg['head'] = dict(type='MultiLabelLinearClsHead', num_classes=10, in_channels=32)
    with pytest.raises(ValueError, match=r'MultiLabelLinearClsHead .* without, and take the sigmoid'):
        WholePrediction(build_model(cfg | HOSTS['mmpretrain'][3]))


class Endless(torch.nn.Module):
    """Its tracing does not end where height is free, as with paddings that follow from the size."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, inputs, *args, **kwargs):
        swallowed = False
        while isinstance(inputs.shape[2], torch.SymInt):
            try:
                time.sleep(0.01)
            except TimeoutError:  # as sympy does
                if swallowed:
                    raise
                swallowed = True
        return self.conv(inputs).mean((2, 3))


def test_tracing_for_any_size_has_a_limit_of_time(tmp_path, monkeypatch):
    monkeypatch.setattr('lckd_mm.storage.export._FREE_SECONDS', 1.0)
    before = signal.getsignal(signal.SIGALRM)
    written = export(PlainForward(Endless(), 3), tmp_path / 'a.pt2', (16, 16))
    assert written.free == ('batch',) and 'took longer than 1 s' in written.why
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_images_that_a_data_set_holds_are_rgb():
    def cfg(*steps):
        inner = dict(type='A', pipeline=[dict(type=step) for step in steps])
        return Config(dict(test_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=inner))))

    assert not loads_files(cfg('PackInputs')) and not loads_files(cfg('LoadAnnotations', 'PackInputs'))
    assert loads_files(cfg('mmdet.LoadImageFromFile', 'PackInputs')) and loads_files(Config({}))


def test_the_size_is_the_tests(scope):
    scope('mmseg')
    resized = dict(type='Resize', scale=(200, 100), keep_ratio=True)
    cfg = Config(dict(model=padded(), test_dataloader=dict(dataset=dict(type='A', pipeline=[resized]))))
    assert size_in_tests(cfg, plain_model(cfg)) == (128, 224)
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 96), stride=(32, 32))
    assert size_in_tests(cfg, plain_model(cfg)) == (64, 96)
    cfg.pop('test_dataloader')
    cfg.model.test_cfg = dict(mode='whole')
    assert size_in_tests(cfg, plain_model(cfg)) == (64, 64)


def test_outputs_that_differ_leave_no_file_and_keep_the_old_one(model, tmp_path):
    net, path = model('mmpretrain'), tmp_path / 'net.pt2'
    path.write_bytes(b'old')
    with pytest.raises(ValueError, match='differ from those of ImageClassifier'):
        export(PlainForward(net), path, (32, 32), fixed=True, tolerance=-1.0)
    assert path.read_bytes() == b'old'
    assert [p.name for p in tmp_path.iterdir()] == ['net.pt2']


def test_a_forward_that_cannot_be_exported_is_a_sentence(model, tmp_path):
    class Branch(torch.nn.Module):
        def forward(self, x):
            return x if x[0].sum() > 0 else (-x[0],)

    net = model('mmpretrain')
    net.neck = torch.nn.Sequential(net.neck, Branch())
    with pytest.raises(ValueError, match=r'ImageClassifier .* \.pt2'):
        export(PlainForward(net), tmp_path / 'net.pt2', (32, 32))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r'\.pth.*\.onnx, \.pt2'):
        export(PlainForward(net), tmp_path / 'net.pth', (32, 32))


def test_a_model_without_a_plain_forward_is_refused_with_a_way(scope, tmp_path):
    scope('mmseg')
    net = build_model(mask2former())
    # Nor is its export proposed at the end of a training.
    assert _export_flags(net, cfg := Config(dict(model=segmentor(4)))) is None
    assert _export_flags(build_model(segmentor(4)), cfg) == ['--end-to-end']
    with pytest.raises(ValueError, match=r'EncoderDecoder fails .* no plain forward of images alone; .* mmdeploy'):
        export(PlainForward(net), tmp_path / 'net.pt2', (64, 64))
    with pytest.raises(ValueError, match=r'RuntimeError: .*: give --size'):
        export(PlainForward(build_model(of_one_size())), tmp_path / 'net.pt2', (64, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('channels', [1, 6])
def test_images_of_other_channels(channels, scope, tmp_path):
    scope('mmpretrain')
    cfg = HOSTS['mmpretrain'][0](4)
    cfg['backbone']['in_channels'] = channels
    net, path = build_model(cfg).eval(), tmp_path / 'net.pt2'
    export(PlainForward(net, channels), path, (32, 32), fixed=True)
    assert image_channels(net) == channels
    same_outputs(path, net, torch.randn(1, channels, 32, 32))
    assert figures(net, (32, 32))['flops'] > 0


@pytest.mark.full
def test_the_tool_exports_the_student_of_a_distillation(tmp_path):
    config = 'configs/digits/kd_wrn16-4_wrn10-1_1xb30_digits300.py'
    code = (
        'import sys, torch; from mmengine.config import Config; from lckd_mm.config import plain_model;'
        'from mmengine.registry import init_default_scope; init_default_scope("mmpretrain");'
        f'torch.save(dict(state_dict=plain_model(Config.fromfile({config!r})).state_dict()), sys.argv[1])'
    )
    file = str(tmp_path / 'student.pth')
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code, file], cwd=ROOT, check=True)
    out = tmp_path / 'exported' / 'student.onnx'
    command = [sys.executable, '-W', 'ignore', 'tools/export.py', config, file, str(out), '--size', '16', '16']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '16 x 16 to (1, 10), differs by' in done.stdout
    assert 'inputs: (x - mean) / std' in done.stdout and 'channels RGB' in done.stdout
    assert out.is_file()
