"""The demo's claim, on the embedded data set: LONDON's student is better than the student alone."""

import json
import subprocess
import sys

import pytest
from run_helpers import ROOT


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_london_is_well_above_the_student_alone(tmp_path):
    command = [sys.executable, '-W', 'ignore', 'tools/demo.py', '--work-dir', str(tmp_path)]
    names = ('teacher', 'alone', 'lckd')
    out = subprocess.run([*command, '--only', *names], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr[-2000:]
    scores = {}
    for name in names:
        (log,) = (tmp_path / 'seed0' / name).glob('*/vis_data/scalars.json')
        scores[name] = [json.loads(line)['mIoU'] for line in log.read_text().splitlines() if '"mIoU"' in line][-1]
    # In each of the ten stored runs the difference is 11 points or more; rounding alone moves a run by one or two.
    assert scores['teacher'] - 2 > scores['lckd'] > scores['alone'] + 5, scores
