import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from run_helpers import ROOT

from lckd_mm.heads.ssd_head import SSDHead
from lckd_mm.hosts import build_model, fabricate_samples

SIZE = (300, 300)


def detector(kind):
    model = Config.fromfile(ROOT / 'configs/detection/ssd300-r18_8xb8_voc0712.py').model
    widths = (16, 32, 64, 32, 16, 16)
    model.backbone.update(base_channels=8, stem_channels=8, init_cfg=None)
    model.neck.update(in_channels=widths[:3], out_channels=widths)
    model.bbox_head.update(type=kind, in_channels=widths)
    torch.manual_seed(0)
    return build_model(model, 'mmdet').eval()


def test_the_hosts_head_cannot_predict_and_this_one_can():
    image, host, ours = torch.randn(1, 3, *SIZE), detector('SSDHead'), detector('lckd_mm.SSDHead')
    with torch.no_grad():
        with pytest.raises(AttributeError, match="'SSDHead' object has no attribute 'loss_cls'"):
            host(image, fabricate_samples(host, 1, SIZE), mode='predict')
        (sample,) = ours(image, fabricate_samples(ours, 1, SIZE), mode='predict')
    assert type(ours.bbox_head) is SSDHead
    found = sample.pred_instances
    assert len(found) == 200  # the config's max_per_img; what is not trained finds everything
    assert found.labels.max() < 20 and found.scores.min() > 0.02
    assert (found.bboxes[:, 2:] >= found.bboxes[:, :2]).all()


def test_checkpoints_and_training_are_the_hosts():
    host, ours = detector('SSDHead').train(), detector('lckd_mm.SSDHead').train()
    assert list(ours.state_dict()) == list(host.state_dict())
    host.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, *SIZE)
    losses = [model(images, fabricate_samples(model, 2, SIZE), mode='loss') for model in (host, ours)]
    assert losses[0].keys() == losses[1].keys() == {'loss_cls', 'loss_bbox'}
    for name in losses[0]:
        assert torch.equal(torch.stack(losses[0][name]), torch.stack(losses[1][name]))


def test_maps_and_anchors_fit_images_of_300():
    model = detector('lckd_mm.SSDHead')
    with torch.no_grad():
        maps = model.extract_feat(torch.zeros(1, 3, *SIZE))
    assert [m.shape[-1] for m in maps] == [38, 19, 10, 5, 3, 1]
    anchors = model.bbox_head.prior_generator.grid_priors([m.shape[-2:] for m in maps], device='cpu')
    assert sum(map(len, anchors)) == 8732  # SSD300's
    centres = [(a[:, :2] + a[:, 2:]) / 2 for a in anchors]
    assert all(c.min() > 0 and c.max() < 312 for c in centres)


def test_mmdet_is_not_imported_before_a_head_is_built():
    code = (
        "import sys; from lckd_mm.registry import MODELS; assert callable(MODELS.get('SSDHead')); "
        "assert 'mmdet' not in sys.modules"
    )
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False).returncode == 0
