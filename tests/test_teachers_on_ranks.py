"""Two ranks with several teachers, a student that teaches itself and images without labels; resumed to the bit."""

import pytest
import torch
from run_helpers import config, forked_trainings, scenes
from test_several_teachers import COSINE, FITNETS, KD, distiller, teachers
from test_unlabelled import hook

from lckd_mm.storage.files import read_checkpoint


@pytest.fixture(scope='module')
def train():
    yield from forked_trainings('mmseg')


def test_two_ranks_with_all_kinds_of_teachers(train, scenes, tmp_path, teachers):
    terms = dict(
        loss_kd=dict(KD, of=['wide', 'middle']),
        loss_fitnets=dict(FITNETS, of='wide'),
        loss_cos=COSINE,
        loss_self=dict(COSINE, teacher='logits', of='student'),
        loss_more=dict(KD, of='middle', images='unlabelled'),
        loss_fit=dict(FITNETS, of='wide', images='unlabelled'),
    )
    cfg = config('mmseg', scenes, tmp_path, distiller(teachers, **terms), 8)
    cfg.default_hooks.checkpoint.interval = 4
    cfg.custom_imports, cfg.randomness = dict(imports=['stream_recorder']), dict(seed=3, diff_rank_seed=True)
    cfg.custom_hooks = [
        dict(type='StreamRecorder'),
        hook('mmseg', scenes),
        # Teachers rest, and DDP waits for their terms' connectors.
        *(
            dict(type='lckd_mm.LossWeightHook', term=f'loss_{name}', schedule='stop', end=end)
            for name, end in dict(cos=3, more=5, fit=5).items()
        ),
    ]
    cfg.dump(tmp_path / 'whole.py')
    status, text = train(tmp_path / 'whole.py', tmp_path / 'whole', ranks=2)
    assert status == [0, 0], text[-3000:]
    # Ranks with seeds of their own share one stream: the first 18 of 20 images are other ones.
    streams = [(tmp_path / 'whole' / f'stream{rank}.txt').read_text().split() for rank in range(2)]
    assert len(streams[0]) == 24 and len({*streams[0][:9], *streams[1][:9]}) == 18
    cfg.load_from, cfg.resume = str(tmp_path / 'whole' / 'iter_4.pth'), True
    cfg.dump(tmp_path / 'again.py')
    status, text = train(tmp_path / 'again.py', tmp_path / 'again', ranks=2)
    assert status == [0, 0], text[-3000:]
    whole, again = (read_checkpoint(str(tmp_path / name / 'iter_8.pth'), 'test') for name in ('whole', 'again'))
    for key in ('state_dict', 'lckd_mm'):
        ours, theirs = (of[key] if key == 'state_dict' else of[key]['terms'] for of in (whole, again))
        assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
