# Pruning a trained net, with and without KD from what it was; tools/bench/pruning.py adds the class bias.
title = 'Pruning on the digits'
metric = dict(key='accuracy/top1', title='accuracy, %')
work_dir = 'work_dirs/digits'

_pruned = {'load_from': 'alone'}
_taught = {**_pruned, 'model.teacher.checkpoint': 'alone'}
_digits = 'configs/digits/{}_1xb30_digits300.py'
runs = {
    'alone': dict(config=_digits.format('wrn10-1'), title='unpruned (WRN10-1, 300 scans)'),
    'pruned': dict(
        config=_digits.format('pruned_wrn10-1'), title='pruned, 80 % of the weights', needs=_pruned, against='alone'
    ),
    'pruned-kd': dict(
        config=_digits.format('pruned-kd_wrn10-1_wrn10-1'), title='the same, with KD', needs=_taught, against='pruned'
    ),
    'pruned-channels': dict(
        config=_digits.format('pruned-channels_wrn10-1'),
        title='pruned, 45 % of the channels',
        needs=_pruned,
        against='alone',
    ),
    'pruned-channels-kd': dict(
        config=_digits.format('pruned-channels-kd_wrn10-1_wrn10-1'),
        title='the same, with KD',
        needs=_taught,
        against='pruned-channels',
    ),
}
