"""Configs by `mmseg::…`, with the upstream packages and with the maintained forks: run under both."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lckd_mm.hosts import build_model, load_config, read_model_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    'mmseg': ('fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', 'EncoderDecoder'),
    'mmdet': ('retinanet/retinanet_r18_fpn_1x_coco.py', 'RetinaNet'),
    'mmpretrain': ('resnet/resnet18_8xb32_in1k.py', 'ImageClassifier'),
}


@pytest.mark.parametrize('host', CONFIGS)
def test_a_hosts_config_by_name_and_as_a_base(host, tmp_path):
    path, kind = CONFIGS[host]
    assert load_config(f'{host}::{path}').model.type == kind
    (tmp_path / 'mine.py').write_text(f"_base_ = '{host}::{path}'\nmodel = dict(init_cfg=None)\n")
    assert load_config(str(tmp_path / 'mine.py')).model.type == kind


@pytest.mark.parametrize('host', CONFIGS)
def test_a_teacher_by_name_builds(host):
    path, kind = CONFIGS[host]
    model, scope = read_model_config(f'{host}::{path}', 'teacher')
    assert type(build_model(model, scope)).__name__ == kind


def test_a_backbone_alone_by_name_builds_though_its_config_names_no_scope():
    model, scope = read_model_config('mmpretrain::sam/vit-base-p16_sam_headless.py', 'teacher')
    assert scope == 'mmpretrain'
    with torch.device('meta'):
        assert type(build_model(model, scope)).__name__ == 'ImageClassifier'


@pytest.mark.parametrize('source', ['by name', 'as a base'])
def test_a_package_that_is_not_there_is_said(source, tmp_path):
    config = 'mmyolo::yolov5/yolov5_s.py'
    if source == 'as a base':
        (tmp_path / 'mine.py').write_text(f"_base_ = '{config}'\n")
        config = str(tmp_path / 'mine.py')
    with pytest.raises(ModuleNotFoundError, match=r'mmyolo.* not installed'):
        load_config(config, 'teacher')


def test_nothing_is_installed_on_the_way(tmp_path):
    """mmengine's own way out for a distribution that it does not find is `python -m pip install`."""
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\nexit 1\n')
    python.chmod(0o755)
    (tmp_path / 'pip').symlink_to(python)
    configs = [f'{host}::{path}' for host, (path, _) in CONFIGS.items()]
    code = f'from lckd_mm.hosts import load_config; print(*(load_config(c).model.type for c in {configs}))'
    env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], env=env, capture_output=True, text=True)
    assert done.stdout.split()[-3:] == [kind for _, kind in CONFIGS.values()], done.stderr
    assert not (tmp_path / 'called').exists()
