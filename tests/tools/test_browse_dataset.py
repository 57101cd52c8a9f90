"""tools/analysis/browse_dataset.py on the three hosts' data, looked at pixel by pixel."""

import runpy

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from run_helpers import HOSTS, ROOT, config, scenes

from lckd_mm.cli import run_tool
from lckd_mm.evaluation.drawing import loaded_image


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


def test_grey_images(browse, scenes, tmp_path):
    cfg = config('mmseg', scenes, tmp_path / 'work', HOSTS['mmseg'][0](8))
    load, labels, _, pack = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [dict(load, color_type='grayscale'), labels, pack]
    cfg.dump(tmp_path / 'config.py')
    assert run_tool(browse, [str(tmp_path / 'config.py'), '--out', str(tmp_path / 'out'), '--number', '1']) == 0
    picture = cv2.imread(str(tmp_path / 'out' / 'train_00000.png'))[20:, :190]
    assert picture.std() > 10 and (picture == picture[..., :1]).all()


@pytest.mark.parametrize(
    ('channels', 'shown'), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [2, 1, 0]), (4, [2, 1, 0]), (6, [2, 1, 0])]
)
def test_images_of_any_number_of_channels(channels, shown):
    image = torch.randint(0, 256, (channels, 5, 4)).byte()
    assert np.array_equal(loaded_image(image), image[shown].permute(1, 2, 0))
    deep = (image.float() / 255).to(torch.float32)
    deep.view(channels, -1)[:, :2] = torch.tensor([0.0, 1.0])
    assert np.abs(loaded_image(deep).astype(int) - 255 * deep[shown].permute(1, 2, 0).numpy()).max() <= 1


def test_mistakes_are_sentences(browse, scenes, tmp_path, capsys):
    cfg = config('mmseg', scenes, tmp_path / 'work', HOSTS['mmseg'][0](8))
    cfg.dump(tmp_path / 'config.py')
    arguments = [str(tmp_path / 'config.py'), '--out', str(tmp_path / 'out')]
    assert run_tool(browse, [*arguments, '--split', 'val']) == 1
    assert 'has no val_dataloader' in capsys.readouterr().err
    assert run_tool(browse, [*arguments, '--number', '0']) == 1
    assert '--number must be at least 1' in capsys.readouterr().err
