"""Hostile and wrong files: refused with a sentence and never run, wherever they come in."""

import http.server
import pickle
import subprocess
import sys
import threading
import zipfile
from collections import OrderedDict

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import get_file_backend
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from run_helpers import ROOT, config, distiller, run, scenes, segmentor, teacher_file

from lckd_mm import cli
from lckd_mm.hosts import build_model
from lckd_mm.storage import files
from lckd_mm.storage.checkpoint import check_loading, load_strictly, model_weights
from lckd_mm.storage.files import read_checkpoint


class Touch:
    """Pickled, it is a call that leaves a file behind: what a hostile checkpoint would do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f'open({str(self.path)!r}, "w").close()',)


@pytest.fixture
def model(scope):
    scope('mmseg')
    torch.manual_seed(0)
    return build_model(segmentor(4), 'mmseg')


@pytest.fixture
def hostile(model, tmp_path):
    """A checkpoint that works, and would run code on loading; and the trace that it would leave."""
    trace = tmp_path / 'it-ran'
    state = dict(
        state_dict=model.state_dict(), meta=dict(epoch=0, iter=1, note=Touch(trace)), message_hub={}, optimizer={}
    )
    torch.save(state, tmp_path / 'hostile.pth')
    return tmp_path / 'hostile.pth', trace


REFUSED = r'hostile.pth.*it would run (builtins\.)?exec.*--trust-checkpoint'


@pytest.mark.parametrize('environment', ['', '1'])
def test_every_way_in_refuses_what_would_run_code(environment, hostile, model, scenes, tmp_path, monkeypatch):
    """TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD, with which torch.load alone would run it, changes nothing."""
    path, trace = hostile
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', environment)
    for load in (
        lambda: read_checkpoint(str(path), 'teacher'),
        lambda: load_strictly(model, str(path), 'test'),
        lambda: load_checkpoint(model, str(path)),  # mmengine's own, of init_cfg=Pretrained
        lambda: CheckpointLoader.load_checkpoint(str(path)),
    ):
        with pytest.raises(ValueError, match=REFUSED):
            load()
    for resume in (True, False):  # mmengine's Runner, without tools/train.py before it
        cfg = config('mmseg', scenes, tmp_path / 'run', segmentor(4), 2, load_from=str(path), resume=resume)
        with pytest.raises(ValueError, match=REFUSED):
            run(cfg)
    assert not trace.exists()
    if environment:
        torch.load(path)
        assert trace.exists(), 'the file is not hostile, so that this test shows nothing'


def old_style(path, trace):
    torch.save(dict(state_dict={}, note=Touch(trace)), path, _use_new_zipfile_serialization=False)


def plain_pickle(path, trace):
    path.write_bytes(pickle.dumps(dict(state_dict={}, note=Touch(trace))))


def with_a_method(path, trace):
    """getattr is let through for mmengine's log buffers, and for their own methods alone."""

    class Reach:
        def __reduce__(self):
            return getattr, (torch.nn.Module, 'load_state_dict')

    torch.save(dict(state_dict={}, note=Reach()), path)


@pytest.mark.parametrize(
    'write, word',
    [
        (old_style, 'exec'),
        (plain_pickle, 'not a checkpoint of torch'),
        (with_a_method, 'torch.nn.modules.module.Module'),
    ],
)
def test_other_forms_are_refused_as_well(write, word, tmp_path):
    write(tmp_path / 'a.pth', tmp_path / 'trace')
    with pytest.raises(ValueError, match=word):
        read_checkpoint(str(tmp_path / 'a.pth'), 'teacher')
    assert not (tmp_path / 'trace').exists()


def test_trust_is_for_one_file_and_explicit(hostile, tmp_path, monkeypatch):
    path, trace = hostile
    monkeypatch.setattr(files, '_trusted', set())
    files.trust(tmp_path / 'another.pth')
    with pytest.raises(ValueError, match=REFUSED):
        read_checkpoint(str(path), 'teacher')
    files.trust(path)
    assert 'state_dict' in read_checkpoint(str(path), 'teacher')
    assert trace.exists()


def test_a_download_is_not_trusted_more_than_a_file(hostile, tmp_path, monkeypatch):
    """torch.hub, with which mmengine fetches, asks for weights_only=False by itself."""
    _, trace = hostile
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    handler = lambda *args: http.server.SimpleHTTPRequestHandler(*args, directory=str(tmp_path))  # noqa: E731
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ValueError, match=REFUSED):
            read_checkpoint(f'http://127.0.0.1:{server.server_port}/hostile.pth', 'teacher')
        server.shutdown()
    assert not trace.exists()


def test_a_config_in_a_checkpoint_is_not_run_on_resume(scenes, tmp_path):
    """Runner.resume executes the text at meta.config as Python: tensors and plain values alone, and yet code."""
    run(config('mmseg', scenes, tmp_path / 'run', segmentor(4), 2))
    trace = tmp_path / 'it-ran'
    saved = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=True)
    saved['meta']['config'] = f'open({str(trace)!r}, "w").close()\nwork_dir = None\n'
    torch.save(saved, tmp_path / 'run' / 'iter_2.pth')
    Config.fromstring(saved['meta']['config'], file_format='.py')
    assert trace.exists()
    trace.unlink()
    run(config('mmseg', scenes, tmp_path / 'again', segmentor(4), 4, resume=True,
               load_from=str(tmp_path / 'run' / 'iter_2.pth')))  # fmt: skip
    assert not trace.exists()


OTHER = {
    'empty': (lambda p: p.write_bytes(b''), 'empty'),
    'a web page': (lambda p: p.write_text('<!DOCTYPE html><html>404</html>'), 'not a checkpoint of torch'),
    'a folder': (lambda p: p.mkdir(), 'no checkpoint at'),
    'a picture': (lambda p: p.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(64)), 'not a checkpoint of torch'),
    'an archive of something else': (lambda p: zipfile.ZipFile(p, 'w').close(), 'not a checkpoint of torch'),
    'a list': (lambda p: torch.save([1], p), 'list'),
    'no weights': (lambda p: torch.save(dict(epoch=3), p), 'epoch'),
}


@pytest.mark.parametrize('kind', OTHER)
def test_what_is_no_checkpoint_is_named(kind, tmp_path):
    write, word = OTHER[kind]
    write(tmp_path / 'a.pth')
    with pytest.raises((ValueError, FileNotFoundError), match=r'^teacher: .*a\.pth') as error:
        model_weights(str(tmp_path / 'a.pth'), 'teacher')
    assert word in str(error.value)


@pytest.mark.parametrize('part', [1, 100, 500, 999])
@pytest.mark.parametrize('legacy', [False, True])
def test_a_file_cut_short_anywhere_is_refused(part, legacy, model, tmp_path):
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth', _use_new_zipfile_serialization=not legacy)
    content = (tmp_path / 'a.pth').read_bytes()
    (tmp_path / 'a.pth').write_bytes(content[: len(content) * part // 1000])
    with pytest.raises(ValueError, match=r'^teacher: cannot read the checkpoint .*a\.pth'):
        model_weights(str(tmp_path / 'a.pth'), 'teacher')


def prefixed(prefix, **others):
    return lambda s: dict(state_dict={prefix + k: v for k, v in s.items()} | others)


FORMS = {
    'bare': dict,
    'state_dict': prefixed(''),
    'model': lambda s: dict(model=s),
    'DataParallel': prefixed('module.'),
    'twice wrapped': prefixed('module.student.'),
    'mmrazor': prefixed('architecture.', **{'teacher.conv.weight': torch.ones(1)}),
    'student beside a teacher': prefixed('student.', **{'teacher.conv.weight': torch.ones(1)}),
    'a teacher alone': prefixed('teacher.'),
    'EMA beside the raw ones': lambda s: dict(
        state_dict=s, ema_state_dict={'steps': torch.tensor(3), **{f'module.{k}': v + 1 for k, v in s.items()}}
    ),
    'EMA alone': lambda s: dict(ema_state_dict={'steps': torch.tensor(3), **{f'module.{k}': v for k, v in s.items()}}),
}


@pytest.mark.parametrize('form', FORMS)
def test_known_forms_of_a_teachers_file_are_understood(form, model, tmp_path):
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    torch.save(FORMS[form](expected), tmp_path / 'a.pth')
    torch.manual_seed(1)
    other = build_model(segmentor(4), 'mmseg')
    load_strictly(other, str(tmp_path / 'a.pth'), 'teacher')
    assert all(torch.equal(v, expected[k]) for k, v in other.state_dict().items())


def test_what_the_host_computes_itself_may_be_missing(tmp_path):
    """Swin Transformer V2 removes its tables of coordinates from every file that it loads."""
    arch = dict(embed_dims=8, depths=[1], num_heads=[2], extra_norm_every_n_blocks=0)
    config = dict(
        type='ImageClassifier',
        backbone=dict(type='SwinTransformerV2', arch=arch, img_size=32, window_size=[4], out_indices=[0]),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=8),
    )
    model, other = (build_model(config, 'mmpretrain') for _ in range(2))
    state = model.state_dict()
    tables = [k for k in state if k.endswith(('relative_coords_table', 'relative_position_index'))]
    assert len(tables) == 2
    for left_out in ([], tables):
        torch.save({k: v for k, v in state.items() if k not in left_out}, tmp_path / 'a.pth')
        load_strictly(other, str(tmp_path / 'a.pth'), 'teacher')
        assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())
    torch.save({k: v for k, v in state.items() if k != 'head.fc.bias'}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'missing head\.fc\.bias;'):
        load_strictly(other, str(tmp_path / 'a.pth'), 'teacher')


def changed(**changes):
    def write(path, model):
        state = OrderedDict(model.state_dict())
        for name, change in changes.items():
            state[name.replace('__', '.')] = change(state[name.replace('__', '.')])
        torch.save(dict(state_dict=state), path)

    return write


def of_another(**options):
    def write(path, model):
        torch.save(dict(state_dict=build_model(segmentor(4) | options, 'mmseg').state_dict()), path)

    return write


HEAD = segmentor(4)['decode_head']
# what is wrong, and what is said where every key must fit
WRONG = {
    'another width': (
        lambda path, model: torch.save(build_model(segmentor(8), 'mmseg').state_dict(), path),
        'size mismatch',
    ),
    'another number of classes': (of_another(decode_head=dict(HEAD, num_classes=7)), r'decode_head\.conv_seg'),
    'nan': (changed(decode_head__conv_seg__bias=lambda v: v * float('nan')), 'nan or infinity in decode_head.conv_seg'),
    'another architecture': (
        lambda path, model: torch.save(dict(state_dict={'conv.weight': torch.ones(3)}), path),
        'missing .*unexpected conv.weight',
    ),
}


@pytest.mark.parametrize('wrong', WRONG)
def test_a_teacher_or_a_tested_file_must_fit(wrong, model, tmp_path):
    write, word = WRONG[wrong]
    write(tmp_path / 'a.pth', model)
    with pytest.raises(ValueError, match=rf'teacher: .*a\.pth.*{word}'):
        load_strictly(model, str(tmp_path / 'a.pth'), 'teacher')


@pytest.fixture
def train(scenes, tmp_path, capsys):
    """train(cfg, *options) -> (exit status, the error's line, the run's log)"""

    def call(cfg, *options):
        cfg.log_level = 'INFO'
        cfg.dump(tmp_path / 'config.py')
        DefaultScope._instance_dict.clear()
        argv = [str(tmp_path / 'config.py'), '--work-dir', str(tmp_path / 'work'), *map(str, options)]
        status = cli.run_tool(cli.train, argv)
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
        log = '\n'.join(path.read_text() for path in (tmp_path / 'work').glob('*/*.log'))
        return status, ''.join(errors), log

    return call


def test_load_from_says_what_fits(train, model, scenes, tmp_path):
    cfg = config('mmseg', scenes, tmp_path / 'run', segmentor(4), 2)
    file = tmp_path / 'a.pth'
    cfg.load_from = str(file)

    # another head is common, and allowed: listed
    WRONG['another number of classes'][0](file, model)
    status, _, log = train(cfg)
    assert status == 0
    own = [k for k in model.state_dict() if 'num_batches' not in k]
    assert f'fits EncoderDecoder in {len(own) - 2} of its {len(own)} tensors' in log
    assert 'size mismatch 2 keys: decode_head.conv_seg.weight ([7, ' in log

    for write, words in (
        (WRONG['another architecture'][0], ['load_from: nothing in', 'EncoderDecoder', 'conv.weight', 'backbone.']),
        (lambda p, m: torch.save(prefixed('architecture.')(m.state_dict()), p), ["'architecture.'"]),
        (lambda p, m: torch.save(dict(ema_state_dict=m.state_dict()), p), ['no weights where mmengine looks']),
        (WRONG['nan'][0], ['nan or infinity']),
        (lambda p, m: p.write_text('<html>'), ['load_from: cannot read']),
        (lambda p, m: p.unlink(), ["load_from: no checkpoint at '"]),
    ):
        write(file, model)
        status, error, _ = train(cfg)
        assert status == 1
        for word in words:
            assert word in error, error


def test_load_from_into_a_distillation_is_judged_by_the_student(train, model, scenes, tmp_path, teacher_file):
    cfg = config('mmseg', scenes, tmp_path / 'run', distiller('mmseg', segmentor(4), *teacher_file('mmseg')), 2)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    cfg.load_from = str(tmp_path / 'a.pth')
    status, error, log = train(cfg)
    assert status == 0, error
    assert 'tensors;' not in log
    WRONG['another number of classes'][0](tmp_path / 'a.pth', model)
    runner = Runner.from_cfg(cfg)
    report = check_loading(runner.model, read_checkpoint(cfg.load_from, 'load_from'), cfg.load_from, 'load_from')
    assert 'size mismatch 2 keys: decode_head.conv_seg.weight' in report and 'missing' not in report


def test_resume_takes_its_own_model_only(train, scenes, tmp_path):
    run(config('mmseg', scenes, tmp_path / 'run', segmentor(4), 2))
    file = tmp_path / 'run' / 'iter_2.pth'
    other = segmentor(4)
    other['decode_head']['num_classes'] = 12
    status, error, _ = train(config('mmseg', scenes, tmp_path / 'run', other, 4), '--resume', file)
    assert status == 1
    assert 'resume: ' in error and 'size mismatch 2 keys: decode_head.conv_seg' in error and 'load_from' in error
    saved = torch.load(file, weights_only=True)
    del saved['message_hub']
    torch.save(saved, file)
    status, error, _ = train(config('mmseg', scenes, tmp_path / 'run', segmentor(4), 4), '--resume', file)
    assert status == 1 and 'message_hub' in error
    status, error, _ = train(
        config('mmseg', scenes, tmp_path / 'run', segmentor(4), 4), '--resume', tmp_path / 'no.pth'
    )
    assert status == 1 and "resume: no checkpoint at '" in error


def test_pretrained_that_fits_nothing_is_refused(train, model, scenes, tmp_path):
    student = segmentor(4)
    student['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    cfg = config('mmseg', scenes, tmp_path / 'run', student, 2)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    status, error, _ = train(cfg)  # backbone.… in the file, and the backbone alone asks for conv1.…
    assert status == 1 and 'init_cfg of backbone: nothing in' in error and 'fits ResNetV1c' in error
    cfg.model.backbone.init_cfg.prefix = 'backbone.'
    status, error, log = train(cfg)
    assert status == 0, error
    assert 'init_cfg of' not in log
    torch.save(model.backbone.layer1.state_dict(prefix='layer1.'), tmp_path / 'a.pth')
    del cfg.model.backbone.init_cfg['prefix']
    status, _, log = train(cfg)
    assert status == 0 and 'init_cfg of backbone' in log and 'missing' in log


def test_the_hooks_can_be_taken_away(train, scenes, tmp_path):
    cfg = config('mmseg', scenes, tmp_path / 'run', segmentor(4), 2)
    status, error, _ = train(cfg)
    assert status == 0, error
    assert set(torch.load(tmp_path / 'work' / 'iter_2.pth', weights_only=True)['lckd_mm']) == {'random'}
    status, error, _ = train(cfg, '--cfg-options', 'default_hooks.resume=None')
    assert status == 0, error
    assert 'lckd_mm' not in torch.load(tmp_path / 'work' / 'iter_2.pth', weights_only=True)


# ---- what is changed in mmengine and torch

BUILDING = """
import sys, warnings; warnings.simplefilter('ignore')
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import FileClient
from mmengine.fileio.backends import registry_utils
from mmengine.runner import CheckpointLoader

def state():
    tables = (registry_utils.backends, registry_utils.prefix_to_backends, CheckpointLoader._schemes, MODULE2PACKAGE,
              FileClient._backends, FileClient._prefix_to_backends)
    return [dict(table) for table in tables], torch.load, sorted(map(str, torch.serialization.get_safe_globals()))

import mmseg.models
before = state()
from lckd_mm.hosts import build_model
import lckd_mm.hooks
model = build_model(Config.fromfile(sys.argv[1]).model, 'mmseg')
model.init_weights()
assert model.teacher.loaded and state() == before
from lckd_mm.storage.files import install, uninstall
install()
install()
assert state() != before
uninstall()
assert state() == before
print('unchanged')
"""


def test_building_a_distiller_changes_nothing_in_mmengine_or_torch(scenes, tmp_path):
    """And yet it reads its teacher's file, which mmengine has written with classes that torch refuses."""
    run(config('mmseg', scenes, tmp_path / 'teacher', segmentor(8), 1))
    (file,) = (tmp_path / 'teacher').glob('iter_1.pth')
    terms = dict(loss_kd=dict(loss=dict(type='lckd_mm.KDLoss'), on='logits'))
    distiller = dict(
        type='lckd_mm.Distiller', student=segmentor(4), teacher=dict(model=segmentor(8), checkpoint=str(file)),
        taps=dict(logits='decode_head.conv_seg'), terms=terms,
    )  # fmt: skip
    Config(dict(model=distiller)).dump(tmp_path / 'distillation.py')
    command = [sys.executable, '-c', BUILDING, str(tmp_path / 'distillation.py')]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.endswith('unchanged\n'), done.stderr[-2000:]


def test_mmengines_own_readers_and_writers_are_replaced():
    loaders = CheckpointLoader._schemes.values()
    assert loaders and all(hasattr(load, '__wrapped__') for load in loaders)
    for backend in (get_file_backend('a'), get_file_backend(backend_args=dict(backend='local'))):
        assert isinstance(backend, files.WholeFileBackend)


def test_an_address_that_gives_nothing_is_said_in_a_sentence():
    with pytest.raises(FileNotFoundError, match=r"^teacher: 'http://127.0.0.1:9/a.pth' cannot be fetched \("):
        read_checkpoint('http://127.0.0.1:9/a.pth', 'teacher')
