"""Two ranks whose teacher judges regions, queries or masks, or whose queries are matched; resumed to the bit."""

import pytest
import torch
from run_helpers import HOOK, config, forked_trainings, scenes
from small_nets import dino, rcnn
from test_mask_queries import small
from test_mask_queries import taps as mask_taps
from test_mask_queries import term as mask_term
from test_matched_queries import TAPS
from test_matched_queries import term as matched_term
from test_queries import MEMORY, detr
from test_queries import term as query_term
from test_regions import SCORES
from test_regions import term as region_term
from test_reuse import model

#: Host, terms, taps, student and teacher.
CASES = dict(
    regions=('mmdet', region_term(), dict(scores=SCORES), rcnn(), rcnn(width=24)),
    queries=('mmdet', query_term(), MEMORY, dino(classes=10), dino(classes=10)),
    matched=('mmdet', matched_term(), TAPS, dino(classes=10), detr('deformable', classes=10)),
    masks=('mmseg', mask_term(), mask_taps(), small(classes=11), small(classes=11)),
)


@pytest.fixture(scope='module')
def train():
    yield from forked_trainings('mmdet', 'mmseg')


@pytest.mark.parametrize('case', CASES)
def test_both_ranks_have_the_same_weights_and_go_on_from_a_checkpoint(case, train, scenes, tmp_path):
    host, terms, taps, student, teacher = CASES[case]
    cfg = config(host, scenes, tmp_path, model(tmp_path, terms, taps, student, teacher, host), iters=4)
    cfg.default_hooks.distillation, cfg.default_hooks.checkpoint.interval = HOOK, 2
    cfg.optim_wrapper.optimizer.lr = 1e-3
    cfg.custom_imports = dict(imports=['rank_recorder'])
    cfg.custom_hooks, cfg.randomness = [dict(type='RankRecorder')], dict(seed=3, diff_rank_seed=True)
    states = {}
    for name in ('whole', 'again'):
        if name == 'again':
            cfg.load_from, cfg.resume = str(tmp_path / 'whole' / 'iter_2.pth'), True
        cfg.dump(tmp_path / f'{name}.py')
        status, text = train(tmp_path / f'{name}.py', tmp_path / name, ranks=2)
        assert status == [0, 0], text[-3000:]
        records = [torch.load(tmp_path / name / f'rank{rank}.pth') for rank in range(2)]
        assert all(record['wrapper'] for record in records) and records[0]['images'] != records[1]['images']
        states[name], second = (record['state'] for record in records)
        # BatchNorm's running statistics are each rank's own.
        assert all(torch.equal(value, second[key]) for key, value in states[name].items() if 'running_' not in key)
        assert any(not torch.equal(value, records[0]['started'][key]) for key, value in states[name].items())
    assert states['whole'].keys() == states['again'].keys()
    assert all(torch.equal(value, states['again'][key]) for key, value in states['whole'].items())
