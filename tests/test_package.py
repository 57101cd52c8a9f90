"""What is installed: it carries the configs and tools, so that `lckd_mm::…` works without this repository."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from run_helpers import FULL, ROOT

LEAF = 'segmentation/lckd-kd_pspnet_r101-d8_pspnet_r18-d8_4xb4-20k_voc12aug-512x512.py'


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A folder with the package installed from its wheel, to be put first in PYTHONPATH.

    `make test` leaves out pip and the compiler, which takes most of the time, and takes what else goes into the wheel.
    """
    folder = tmp_path_factory.mktemp('wheel')
    if not FULL:
        (folder / 'site').mkdir()
        build = ['egg_info', '--egg-base', folder / 'site', 'build_py', '--build-lib', folder / 'site']
        setup = [sys.executable, '-c', 'import setuptools; setuptools.setup()', *build]
        subprocess.run(setup, check=True, capture_output=True, text=True, cwd=ROOT)
        return folder / 'site'
    pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
    wheel = [*pip, 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', str(folder), str(ROOT)]
    subprocess.run(wheel, check=True, capture_output=True, text=True)
    (file,) = folder.glob('*.whl')
    subprocess.run(
        [*pip, 'install', '--no-deps', '--no-index', '--target', str(folder / 'site'), str(file)], check=True
    )
    return folder / 'site'


def python(installed, cwd, *arguments, code=0):
    env = {**os.environ, 'PYTHONPATH': str(installed)}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *map(str, arguments)], env=env, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_wheel_has_every_config_and_tool(installed):
    mim = installed / 'lckd_mm' / '.mim'
    for folder in ('configs', 'tools'):
        ours = {p.relative_to(ROOT) for p in (ROOT / folder).rglob('*') if p.is_file() and '__pycache__' not in p.parts}
        assert ours == {
            p.relative_to(mim) for p in (mim / folder).rglob('*') if p.is_file() and '__pycache__' not in p.parts
        }
    assert os.access(mim / 'tools/dist_train.sh', os.X_OK)
    for path in mim.rglob('*'):
        assert not path.is_symlink()


def test_a_config_by_the_packages_name(installed, tmp_path):
    (tmp_path / 'mine.py').write_text(f"_base_ = 'lckd_mm::{LEAF}'\nmodel = dict(terms=dict(loss_kd=None))\n")
    code = (
        'import lckd_mm; from lckd_mm.hosts import load_config; '
        f'print(lckd_mm.__file__, load_config({"lckd_mm::" + LEAF!r}).model.type, '
        "load_config('mine.py').model.terms.loss_kd)"
    )
    assert python(installed, tmp_path, '-c', code).split()[-3:] == [
        str(installed / 'lckd_mm/__init__.py'), 'lckd_mm.Distiller', 'None'
    ]  # fmt: skip


@pytest.mark.full
def test_the_tools_run_from_the_wheel(installed, tmp_path):
    tools = installed / 'lckd_mm/.mim/tools'
    taps = python(installed, tmp_path, tools / 'analysis/list_taps.py', 'lckd_mm::lckd_fcn_voc.py', '--backbone')
    assert "stage4='backbone.layer4@preact'" in taps
    says = python(installed, tmp_path, tools / 'train.py', 'lckd_mm::lckd_fcn_voc.py', code=1)
    assert "no data at 'data/VOCdevkit/VOC2012'" in says.splitlines()[-1]
    scenes = 'lckd_mm::demo/fcn_r18-w8_1xb8-digit-scenes-96x96.py'
    says = python(installed, tmp_path, tools / 'train.py', scenes, code=1)
    assert 'write it with: lckd_mm prepare_data digit-scenes' in says.splitlines()[-1]
    lists = python(installed, tmp_path, '-c', 'from lckd_mm.taps import LIST_ALL; print(LIST_ALL)')
    assert lists.splitlines()[-1] == 'list all: lckd_mm list_taps CONFIG'
    # The report's page is a template, which is no Python file.
    assert (installed / 'lckd_mm/reporting/report.html.jinja').is_file()
    assert 'holds no run' in python(installed, tmp_path, tools / 'analysis/report.py', tmp_path, code=1)
    # A name that leads nowhere is a sentence too.
    assert 'no config file' in python(installed, tmp_path, tools / 'train.py', 'lckd_mm::none.py', code=1)


def test_the_doctor_advises_what_a_wheel_has(installed, tmp_path):
    # -S leaves the site-packages out.
    says = python(installed, tmp_path, '-S', '-m', 'lckd_mm.doctor', code=1)
    assert "mmdet           not installed; pip install 'lckd_mm[hosts]'" in says
    assert re.search(
        r'mmcv            not installed; after torch: pip install .*--no-build-isolation mmcv==2\.1\.0', says
    )
    assert '; lckd_mm prepare_data digit-scenes' in says
    assert 'make' not in says and 'tools/' not in says


def test_from_the_repository_the_name_works_too():
    code = f'from lckd_mm.hosts import load_config; print(load_config({"lckd_mm::" + LEAF!r}).model.type)'
    assert python(ROOT, '/', '-c', code).split()[-1] == 'lckd_mm.Distiller'


def test_the_index_lists_every_metafile_and_each_of_its_configs_is_there():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert index == sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').rglob('metafile.yml'))
    for metafile in index:
        for model in yaml.safe_load((ROOT / metafile).read_text())['Models']:
            assert (ROOT / model['Config']).is_file()
