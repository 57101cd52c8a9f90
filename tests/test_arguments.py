import math

import numpy as np
import pytest

from lckd_mm import arguments


@pytest.mark.parametrize('value', [None, True, 'one', math.nan, math.inf, [1.0], 1j])
def test_what_is_not_a_number(value):
    with pytest.raises(ValueError, match='KDLoss: tau must be a finite number, got '):
        arguments.number('KDLoss', 'tau', value)


def test_bounds():
    assert arguments.number('A', 'b', np.float32(0.5), above=0, at_most=0.5) == 0.5
    assert arguments.number('A', 'b', 0, at_least=0) == 0
    assert arguments.integer('A', 'b', np.int64(3)) == 3
    assert arguments.integer('A', 'b', -3, at_least=None) == -3
    for check, value, bounds, says in (
        (arguments.number, 0, dict(above=0), 'A: b must be above 0, got 0'),
        (arguments.number, -0.5, dict(at_least=0), 'A: b must be at least 0, got -0.5'),
        (arguments.number, 17, dict(at_most=16), 'A: b must be at most 16, got 17'),
        (arguments.integer, 0, {}, 'A: b must be at least 1, got 0'),
    ):
        with pytest.raises(ValueError, match=says):
            check('A', 'b', value, **bounds)


@pytest.mark.parametrize('value', [None, True, 1.0, '1', math.nan])
def test_what_is_not_an_integer(value):
    with pytest.raises(ValueError, match='A: b must be an integer, got '):
        arguments.integer('A', 'b', value)


def test_sequences_booleans_and_strings():
    assert arguments.sequence('A', 'b', (1, 2), 'numbers') == [1, 2]
    assert arguments.integers('A', 'b', (1, 2)) == [1, 2]
    assert arguments.layer_weights('A', None) is None
    assert arguments.layer_weights('A', (1, 0.5)) == [1, 0.5]
    assert arguments.boolean('A', 'b', False) is False
    assert arguments.string('A', 'b', 'c') == 'c'
    assert arguments.choice('A', 'b', 'c', ('c', 'd')) == 'c'
    for call, says in (
        (lambda: arguments.sequence('A', 'b', 'cd', 'numbers'), "b must be a list of numbers, got 'cd'"),
        (lambda: arguments.integers('A', 'b', 3), 'b must be a list of integers, got 3'),
        (lambda: arguments.integers('A', 'b', [3, 0]), 'b must be at least 1, got 0'),
        (lambda: arguments.layer_weights('A', 0.5), 'layer_weights must be a list of numbers, got 0.5'),
        (lambda: arguments.layer_weights('A', [0.5, -1]), 'layer_weights must be at least 0, got -1'),
        (lambda: arguments.boolean('A', 'b', 1), 'b must be True or False, got 1'),
        (lambda: arguments.string('A', 'b', ''), "b must be a non-empty string, got ''"),
        (lambda: arguments.choice('A', 'b', 'e', ('c', 'd')), "unknown b 'e', expected one of c, d"),
    ):
        with pytest.raises(ValueError, match=f'A: {says}'):
            call()
