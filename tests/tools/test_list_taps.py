"""tools/analysis/list_taps.py: what it lists can be tapped."""

import subprocess
import sys

from mmengine.config import Config
from run_helpers import ROOT

from lckd_mm.hosts import build_model, run_once
from lckd_mm.taps import FeatureTaps, list_taps

ALONE = 'configs/demo/fcn_r18-w8_1xb8-digit-scenes-96x96.py'


def test_listed_addresses_can_be_tapped_and_the_notes_are_true():
    model = build_model(Config.fromfile(ROOT / ALONE).model, 'mmseg')
    run = lambda: run_once(model, (96, 96), 'tensor')  # noqa: E731
    rows = {row.address: row for row in list_taps(model, run)}
    assert rows['backbone.layer2'].shape == '(1, 16, 12, 12)'
    assert 'backbone.layer2@preact' in rows['backbone.layer2'].note
    assert rows['backbone.layer2.1.relu#-1'].calls == 2
    assert rows['backbone.layer2.1.bn2'].note == 'overwritten'
    assert rows['backbone[3]'].shape == '(1, 64, 12, 12)'
    good = {f't{i}': a for i, (a, row) in enumerate(rows.items()) if 'overwritten' not in row.note}
    # in-place activations overwrite what comes before them only when they are in place, as they are again now
    taps = FeatureTaps({k: a for k, a in good.items() if a.endswith(('layer1', 'layer3', 'conv_seg', ']'))})
    assert taps.trace(model, run) == set()
    assert not any(m._forward_hooks for m in model.modules())


def test_the_tool_prints_the_teachers_too():
    command = [sys.executable, '-W', 'ignore', 'tools/analysis/list_taps.py', 'configs/lckd_fcn_voc.py']
    out = subprocess.run([*command, '--teacher', '--size', '64'], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    assert 'backbone.layer3.22.relu#-1' in out.stdout and 'decode_head.conv_seg' in out.stdout
