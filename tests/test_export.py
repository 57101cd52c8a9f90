"""Export: the files run, alone, and compute what the model does."""

import subprocess
import sys

import pytest
import torch
from run_helpers import HOSTS, ROOT
from small_nets import mask2former, of_one_size

from lckd_mm.hosts import build_model, image_channels
from lckd_mm.reporting.costs import figures
from lckd_mm.storage.export import PlainForward, export

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


def same_outputs(path, net, images):
    """Whether a file, run by nothing of ours, computes what the net does."""
    if path.suffix == '.onnx':
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        got = [torch.from_numpy(x) for x in session.run(None, {'inputs': images.numpy()})]
    else:
        got = torch.export.load(path).module()(images)
    with torch.no_grad():
        expected = PlainForward(net)(images)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['onnx', 'pt2'])
@pytest.mark.parametrize('host', HOSTS)
def test_every_host_in_both_formats(host, kind, model, tmp_path):
    net, path = model(host), tmp_path / f'net.{kind}'
    shapes, worst = export(net, path, (64, 64))
    assert (len(shapes) if host == 'mmdet' else shapes) == OUTPUTS[host]
    assert worst < 1e-5
    # Compared once more, by other images and by nothing of ours.
    same_outputs(path, net, torch.randn(1, 3, 64, 64))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize('kind', ['onnx', 'pt2'])
def test_any_batch(kind, model, tmp_path):
    net, path = model('mmpretrain'), tmp_path / f'net.{kind}'
    export(net, path, (32, 32), dynamic_batch=True)
    same_outputs(path, net, torch.randn(5, 3, 32, 32))


def test_outputs_that_differ_leave_no_file_and_keep_the_old_one(model, tmp_path):
    net, path = model('mmpretrain'), tmp_path / 'net.pt2'
    path.write_bytes(b'old')
    with pytest.raises(ValueError, match='differ from those of ImageClassifier'):
        export(net, path, (32, 32), tolerance=-1.0)
    assert path.read_bytes() == b'old'
    assert [p.name for p in tmp_path.iterdir()] == ['net.pt2']


def test_a_forward_that_cannot_be_exported_is_a_sentence(model, tmp_path):
    class Branch(torch.nn.Module):
        def forward(self, x):
            return x if x[0].sum() > 0 else (-x[0],)

    net = model('mmpretrain')
    net.neck = torch.nn.Sequential(net.neck, Branch())
    with pytest.raises(ValueError, match=r'ImageClassifier .* \.pt2'):
        export(net, tmp_path / 'net.pt2', (32, 32))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r'\.pth.*\.onnx, \.pt2'):
        export(net, tmp_path / 'net.pth', (32, 32))


def test_a_model_without_a_plain_forward_is_refused_with_a_way(scope, tmp_path):
    scope('mmseg')
    net = build_model(mask2former())
    with pytest.raises(ValueError, match=r'EncoderDecoder fails .* no plain forward of images alone; .* mmdeploy'):
        export(net, tmp_path / 'net.pt2', (64, 64))
    with pytest.raises(ValueError, match=r'RuntimeError: .*: give --size'):
        export(build_model(of_one_size()), tmp_path / 'net.pt2', (64, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('channels', [1, 6])
def test_images_of_other_channels(channels, scope, tmp_path):
    scope('mmpretrain')
    cfg = HOSTS['mmpretrain'][0](4)
    cfg['backbone']['in_channels'] = channels
    net, path = build_model(cfg).eval(), tmp_path / 'net.pt2'
    export(net, path, (32, 32), channels=image_channels(net))
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
    assert 'inputs: (x - mean) / std' in done.stdout
    assert out.is_file()
