import math

import numpy as np
import pytest

from lckd_mm import arguments


@pytest.mark.parametrize('value', [None, True, 'one', math.nan, math.inf, -math.inf, [1.0], 1j, 1e39, -1e39])
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match='KDLoss: tau must be a finite number, got '):
        arguments.number('KDLoss', 'tau', value)


def test_bounds_of_numbers():
    assert arguments.number('A', 'b', np.float32(0.5), above=0, at_most=0.5) == 0.5
    assert arguments.number('A', 'b', 0, at_least=0) == 0
    for value, bounds, says in (
        (0, dict(above=0), 'A: b must be above 0, got 0'),
        (-0.5, dict(at_least=0), 'A: b must be 0 or above, got -0.5'),
        (17, dict(at_most=16), 'A: b must be at most 16, got 17'),
    ):
        with pytest.raises(ValueError, match=says):
            arguments.number('A', 'b', value, **bounds)
    for value in (1e-7, 1e7):
        with pytest.raises(ValueError, match=r'A: b must lie between 1e-06 and 1e\+06, got '):
            arguments.scale('A', 'b', value)


@pytest.mark.parametrize('value', [None, True, 1.0, '1', math.nan])
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match='A: b must be a whole number, got '):
        arguments.whole('A', 'b', value)


def test_bounds_of_whole_numbers():
    assert arguments.whole('A', 'b', np.int64(3)) == 3
    assert arguments.whole('A', 'b', -3, at_least=None) == -3
    assert arguments.channels('A', 'b', arguments.MOST_CHANNELS) == arguments.MOST_CHANNELS
    with pytest.raises(ValueError, match='A: b must be at least 1, got 0'):
        arguments.whole('A', 'b', 0)
    with pytest.raises(ValueError, match='A: b must be at most 1048576, got 1048577'):
        arguments.channels('A', 'b', arguments.MOST_CHANNELS + 1)


def test_lists_switches_and_texts():
    assert arguments.listed('A', 'b', (1, 2), 'numbers') == [1, 2]
    assert arguments.layer_weights('A', None) is None
    assert arguments.layer_weights('A', (1, 0.5)) == [1, 0.5]
    assert arguments.switch('A', 'b', False) is False
    assert arguments.text('A', 'b', 'c') == 'c'
    for call, says in (
        (lambda: arguments.listed('A', 'b', 'cd', 'numbers'), "b must be a list of numbers, got 'cd'"),
        (lambda: arguments.layer_weights('A', 0.5), 'layer_weights must be a list of numbers, got 0.5'),
        (lambda: arguments.layer_weights('A', [0.5, -1]), 'layer_weights must be 0 or above, got -1'),
        (lambda: arguments.switch('A', 'b', 1), 'b must be True or False, got 1'),
        (lambda: arguments.text('A', 'b', ''), "b must be a text, got ''"),
    ):
        with pytest.raises(ValueError, match=f'A: {says}'):
            call()
