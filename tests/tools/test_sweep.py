"""tools/bench/sweep.py: published models distil from themselves as stored; it goes on where it ended."""

import argparse
import json
import os
import time
from collections import Counter

import pytest
import torch
from run_helpers import ROOT, count

from lckd_mm.errors import one_line

ROWS = {
    row['config']: row for row in map(json.loads, (ROOT / 'docs/data/sweep-upstream.jsonl').read_text().splitlines())
}


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'bench'))
    import sweep

    return sweep


# Small ones, of as many kinds as there are.
SAMPLE = [
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
]


@pytest.mark.parametrize('name', count(SAMPLE, SAMPLE[:6]))
def test_a_published_model_distils_from_itself_as_stored(sweep, name):
    row = sweep.distil(name, large=False)
    assert {key: row.get(key) for key in ('kind', 'why', 'taps')} == {
        key: ROWS[name].get(key) for key in ('kind', 'why', 'taps')
    }


def test_the_documented_counts_are_those_of_the_stored_rows(sweep):
    text = (ROOT / 'docs' / 'reliability.md').read_text()
    counts = Counter((row['config'].partition('::')[0], row['kind']) for row in ROWS.values())
    for host in sweep.HOSTS:
        assert f'| {host} | {" | ".join(str(counts[host, kind]) for kind in sweep.KINDS)} |' in text
    assert not any(row['kind'] == 'else' for row in ROWS.values())


def test_a_second_call_goes_on_where_the_first_ended(sweep, monkeypatch, tmp_path, capsys):
    ran = []
    monkeypatch.setattr(sweep, 'in_a_process', lambda name, args: ran.append(name) or dict(kind='else', why='no'))
    out, some = tmp_path / 'out.jsonl', ['mmdet::yolox/yolox_nano', 'mmseg::fastscnn']
    sweep.main([str(out), '--only', some[0]])
    sweep.main([str(out), '--only', *some, 'mmpretrain::resnet/resnet18_8xb32'])
    assert len(ran) == len(set(ran)) == len(out.read_text().splitlines()) == 3
    assert json.loads(out.read_text().splitlines()[0])['config'] == 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py'
    assert 'else: mmdet::yolox/yolox_nano_8xb8-300e_coco.py: no' in capsys.readouterr().out
    sweep.main([str(out), '--only', *some, '--again', 'host'])
    assert len(ran) == 3
    sweep.main([str(out), '--only', some[1], '--again', 'else'])
    assert len(ran) == 4 and ran[3] in ran[:3] and len(out.read_text().splitlines()) == 3


def test_folders_take_turns_with_their_small_models_first(sweep):
    small, large = ['a::p/q/p_tiny.py', 'a::q/q_r50.py'], ['a::p/p_b1.py', 'a::q/q_r101.py', 'a::p/p_large.py']
    assert sweep.in_turn([*reversed(large), *reversed(small)]) == [*small, *large]


def too_much(name, large):
    try:
        torch.zeros(2**35)
    except RuntimeError as error:
        return dict(kind='host', why=one_line(error))


@pytest.mark.parametrize(
    'distil, kind, why',
    [
        (lambda name, large: dict(kind='distils', why=name), 'distils', 'a name'),
        (lambda name, large: os._exit(3), 'else', 'its process ended with 3'),
        (lambda name, large: os.kill(os.getpid(), 9), 'else', 'its process ended with -9'),
        (lambda name, large: time.sleep(60), 'else', 'more than 2 s'),
        (lambda name, large: 1 / 0, 'else', 'ZeroDivisionError: division by zero'),
        (too_much, 'large', 'more than 8 GB'),
    ],
)
def test_what_ends_the_process_of_a_config_is_its_row(sweep, monkeypatch, distil, kind, why):
    monkeypatch.setattr(sweep, 'distil', distil)
    start = time.perf_counter()
    row = sweep.in_a_process('a name', argparse.Namespace(timeout=2, memory=8, large=False))
    assert row['kind'] == kind and why in row['why']
    assert time.perf_counter() - start < 30
