import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from real_images import bccd_files, expect_few, write_zip
from scipy.io import savemat

from lckd_mm.config import check_data

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / 'tools/prepare_data.py'


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('prepare_data', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def call(*words, cwd=REPO):
    # Without PYTHONPATH: the script must find the package on its own.
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_digit_scenes_from_any_folder_without_installation(tmp_path):
    done = call('digit-scenes', '--out', 'out', '--train', 3, '--val', 2, '--size', 40, '--seed', 5, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == '3 training and 2 validation scenes are in out\n'
    assert len(list((tmp_path / 'out/JPEGImages').iterdir())) == 5
    assert Image.open(tmp_path / 'out/SegmentationClass/val_000001.png').size == (40, 40)


def test_error_is_one_line_and_status_one(tmp_path):
    (tmp_path / 'out').mkdir()
    done = call('digit-scenes', '--out', tmp_path / 'out', '--train', 1, '--val', 0)
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.startswith('error: digit scenes: ') and done.stderr.count('\n') == 1


@pytest.mark.parametrize(
    'words', [['--debug', 'digit-scenes', '--size', '8'], ['digit-scenes', '--size', '8', '--debug']]
)
def test_debug_shows_the_traceback(words, tool, tmp_path):
    with pytest.raises(ValueError, match='size must be at least 32'):
        tool.main([*words, '--out', str(tmp_path / 'out')])
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(tool, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert tool.main(['digit-scenes', '--out', str(tmp_path / 'file/out'), '--train', '1']) == 1
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'Errno' not in err and str(tmp_path / 'file') in err


def test_force(tool, tmp_path, capsys):
    words = ['digit-scenes', '--out', str(tmp_path / 'out'), '--val', '0', '--size', '32', '--train']
    assert tool.main([*words, '2']) == 0
    assert tool.main([*words, '1']) == 1
    assert '--force' in capsys.readouterr().err
    assert tool.main([*words, '1', '--force']) == 0
    assert len(list((tmp_path / 'out/JPEGImages').iterdir())) == 1
    assert tool.main([*words, '1']) == 0
    assert 'nothing to do' in capsys.readouterr().out


def test_sbd(tmp_path):
    cls, voc = tmp_path / 'SBD/cls', tmp_path / 'VOC2012'
    cls.mkdir(parents=True)
    savemat(cls / 'x.mat', {'GTcls': {'Segmentation': np.full((4, 5), 7, np.uint8)}})
    (voc / 'SegmentationClass').mkdir(parents=True)
    (voc / 'ImageSets/Segmentation').mkdir(parents=True)
    for split in ('train', 'val'):
        (voc / f'ImageSets/Segmentation/{split}.txt').write_text(f'{split}\n')
    done = call('sbd', tmp_path / 'SBD', voc)
    assert done.returncode == 0, done.stderr
    assert 'found 1 of 11,355 masks and added 1 of 9,118' in done.stderr
    assert (voc / 'ImageSets/Segmentation/aug.txt').read_text() == 'x\n'
    assert (np.asarray(Image.open(voc / 'SegmentationClassAug/x.png')) == 7).all()


@pytest.mark.parametrize('name', ['bccd', 'nuclei', 'fashion-mnist'])
def test_downloaded_data_that_are_not_there(name, tool, tmp_path, capsys):
    assert tool.main([name, str(tmp_path / 'absent'), '--out', str(tmp_path / 'out')]) == 1
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and f'no {tmp_path}/absent; give the downloaded archive' in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['bccd', 'nuclei', 'fashion-mnist'])
def test_a_training_without_its_data_names_the_command(name, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = dict(type='A', data_root=tool.DOWNLOADED[name][1])
    with pytest.raises(FileNotFoundError, match=f'prepare_data.py {name} SOURCE'):
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train_dataloader',))


def test_downloaded_data_are_laid_out(tool, tmp_path, monkeypatch, capsys):
    expect_few(monkeypatch, tmp_path)
    source = write_zip(tmp_path / 'bccd.zip', bccd_files())
    assert tool.main(['bccd', str(source), '--out', str(tmp_path / 'out')]) == 0
    assert capsys.readouterr().out == f'bccd is in {tmp_path}/out\n'
    assert (tmp_path / 'out/ImageSets/Main/val.txt').read_text() == 'BloodImage_00007\n'


def test_interruption_is_one_line(tool, monkeypatch, tmp_path, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, 'write_digit_scenes', interrupted)
    assert tool.main(['digit-scenes', '--out', str(tmp_path / 'out')]) == 130
    assert capsys.readouterr().err.count('\n') == 1


def test_imports_no_torch():
    code = f'import runpy, sys; sys.argv = ["x"]; runpy.run_path({str(SCRIPT)!r}, run_name="x"); print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {'torch', 'mmengine', 'mmcv'} & set(done.stdout.split())
