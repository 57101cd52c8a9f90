"""torchvision's MobileNetV2 in the hosts' own: the same features; what does not fit is refused."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from run_helpers import count

# Host: further arguments, and what the outputs are of torchvision's features.
HOSTS = {
    'mmseg': (dict(out_indices=(1, 2, 4, 6), strides=(1, 2, 2, 2, 1, 2, 1), dilations=(1,) * 7), (3, 6, 13, 17)),
    'mmdet': (dict(out_indices=(1, 2, 4, 7)), (3, 6, 13, 18)),
    'mmpretrain': (dict(out_indices=(1, 2, 4, 7)), (3, 6, 13, 18)),
}


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """torchvision's net with statistics of its own, and its file."""
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    net = mobilenet_v2()
    net.train()(torch.rand(2, 3, 64, 64))
    file = tmp_path_factory.mktemp('weights') / 'mobilenet_v2.pth'
    torch.save(net.state_dict(), file)
    return net.eval(), str(file)


def built(host, file, **arguments):
    init_default_scope(host)
    init = dict(type='lckd_mm.TorchvisionInit', checkpoint=file)
    net = MODELS.build(dict(type='MobileNetV2', init_cfg=init, **arguments))
    net.init_weights()
    net.eval()  # whose value is None
    return net


@pytest.mark.parametrize('host', count(list(HOSTS), ['mmseg', 'mmdet']))
def test_the_hosts_nets_have_torchvisions_features(host, published):
    theirs, file = published
    arguments, positions = HOSTS[host]
    images, features = torch.rand(1, 3, 64, 96), []
    with torch.no_grad():
        x = images
        for layer in theirs.features:
            x = layer(x)
            features.append(x)
        for output, position in zip(built(host, file, **arguments)(images), positions, strict=True):
            torch.testing.assert_close(output, features[position], rtol=0, atol=0)


def test_another_width_or_architecture_is_refused(published, tmp_path):
    with pytest.raises(ValueError, match=r"'conv1.conv.weight' of MobileNetV2 is \(8, 3, 3, 3\).*widen_factor=1"):
        built('mmdet', published[1], widen_factor=0.25)
    first = {name: value for name, value in torch.load(published[1]).items() if name.startswith('features.0.')}
    torch.save(first, tmp_path / 'part.pth')
    with pytest.raises(ValueError, match=r'MobileNetV2 has 312 tensors, .*part\.pth only 6'):
        built('mmdet', str(tmp_path / 'part.pth'))
