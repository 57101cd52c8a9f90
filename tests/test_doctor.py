"""python -m lckd_mm.doctor, as a process of its own: in this environment, and in broken ones."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lckd_mm.doctor import FAMILIES, TORCH

ROOT = Path(__file__).resolve().parents[1]


def doctor(*args, paths=(), options=()):
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, [*paths, ROOT]))}
    command = [sys.executable, '-W', 'ignore', *options, '-m', 'lckd_mm.doctor', *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert 'Traceback' not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def line_of(lines, what):
    (line,) = [line for line in lines if line[6:].startswith(what.ljust(15) + ' ')]
    return line


def test_a_sound_installation(tmp_path):
    (tmp_path / 'data/VOCdevkit/VOC2012/ImageSets').mkdir(parents=True)
    code, lines = doctor('--root', tmp_path)
    assert code == 0, lines
    assert lines[-1] == 'all that training needs is there'
    assert line_of(lines, 'operators').startswith('ok')
    for name in FAMILIES['upstream']:
        assert line_of(lines, name).startswith('ok')
    assert line_of(lines, 'VOC2012').startswith('ok')
    sbd = line_of(lines, 'SBD, converted')
    assert sbd.startswith('-') and sbd.endswith('python tools/prepare_data.py sbd SBD_ROOT data/VOCdevkit/VOC2012')


def test_without_any_package():
    # -S leaves the site-packages out, as a bare interpreter would be.
    code, lines = doctor(options=['-S'])
    assert code == 1
    for what in ('torch', 'torchvision', *FAMILIES['upstream']):
        assert re.search(r'WRONG .* not installed; make install$', line_of(lines, what))
    assert line_of(lines, 'operators').startswith('WRONG')
    assert re.fullmatch(r'\d+ wrong', lines[-1])


def test_a_hollow_mmcv(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text("__version__ = '2.1.0'\n")
    code, lines = doctor(paths=[tmp_path])
    assert code == 1
    op = line_of(lines, 'operators')
    assert op.startswith('WRONG') and 'mmcv.ops' in op and '; make install' in op


@pytest.mark.full
def test_both_families_at_once(tmp_path):
    for name in ('mmengine-9.9', 'onedl_mmengine-9.9'):
        (tmp_path / f'{name}.dist-info').mkdir()
        package = name.partition('-')[0].replace('_', '-')
        (tmp_path / f'{name}.dist-info' / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {package}\nVersion: 9.9\n'
        )
    code, lines = doctor(paths=[tmp_path])
    assert code == 1
    mixed = line_of(lines, 'host libraries')
    assert 'mmengine' in mixed and 'remove .venv' in mixed
    assert '(tested with ' in line_of(lines, 'mmengine')


def test_the_versions_are_those_of_the_requirements_and_of_the_page():
    makefile, page = (ROOT / 'Makefile').read_text(), (ROOT / 'docs/installation.md').read_text()
    common = (ROOT / 'requirements-common.txt').read_text()
    for name, version in TORCH.items():
        assert f'{name}=={version}' in common
    for family, file in (('upstream', 'requirements.txt'), ('onedl', 'requirements-onedl.txt')):
        text = (ROOT / file).read_text()
        for distribution, version in FAMILIES[family].items():
            if distribution.endswith('mmcv'):
                assert f'MMCV_PACKAGE := {distribution}\nMMCV := {version}\n' in makefile
            else:
                assert f'{distribution}=={version}\n' in text
            assert f'{distribution} {version}' in page
