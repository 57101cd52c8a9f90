"""tools/analysis/browse_dataset.py on the three hosts' data, looked at pixel by pixel."""

import runpy

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope
from run_helpers import HOSTS, ROOT, config, scenes

from lckd_mm.cli import run_tool


@pytest.fixture
def browse():
    yield runpy.run_path(str(ROOT / 'tools/analysis/browse_dataset.py'))['main']
    DefaultScope._instance_dict.clear()


@pytest.mark.parametrize('host', HOSTS)
def test_inputs_and_truth_side_by_side(browse, host, scenes, tmp_path, capsys):
    cfg = config(host, scenes, tmp_path / 'work', HOSTS[host][0](8))
    if host == 'mmseg':
        # Labels have colours that can be seen; the helper's own are nearly black.
        cfg.train_dataloader.dataset.metainfo.palette = [[0, 0, 0]] + [[250, 0, 250]] * 10
    cfg.dump(tmp_path / 'config.py')
    assert run_tool(browse, [str(tmp_path / 'config.py'), '--out', str(tmp_path / 'out'), '--number', '3']) == 0
    assert '3 of 16 pictures' in capsys.readouterr().out
    files = sorted((tmp_path / 'out').iterdir())
    assert [f.name for f in files] == [f'train_{i:05d}.png' for i in range(3)]
    for file in files:
        left, right = (side[:, :190] for side in np.split(cv2.imread(str(file))[20:], 2, axis=1))
        assert (left != right).any(-1).mean() > 0.0005
        # A photograph, not a black field.
        assert left.std() > 10
    again = tmp_path / 'again'
    assert run_tool(browse, [str(tmp_path / 'config.py'), '--out', str(again), '--number', '3']) == 0
    assert [f.read_bytes() for f in sorted(again.iterdir())] == [f.read_bytes() for f in files]


def test_mistakes_are_sentences(browse, scenes, tmp_path, capsys):
    cfg = config('mmseg', scenes, tmp_path / 'work', HOSTS['mmseg'][0](8))
    cfg.dump(tmp_path / 'config.py')
    arguments = [str(tmp_path / 'config.py'), '--out', str(tmp_path / 'out')]
    assert run_tool(browse, [*arguments, '--split', 'val']) == 1
    assert 'has no val_dataloader' in capsys.readouterr().err
    assert run_tool(browse, [*arguments, '--number', '0']) == 1
    assert '--number must be at least 1' in capsys.readouterr().err
