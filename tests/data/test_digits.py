import functools

import numpy as np
import pytest
import sklearn.datasets
from sklearn.datasets import load_digits

from lckd_mm.data.digits import Digits
from lckd_mm.registry import DATASETS


@pytest.fixture(autouse=True, scope='module')
def _the_file_is_read_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, 'load_digits', functools.cache(load_digits))
        yield


def labels(dataset):
    return [dataset.get_data_info(i)['gt_label'] for i in range(len(dataset))]


def ids(dataset):
    return [dataset.get_data_info(i)['scan_id'] for i in range(len(dataset))]


def test_the_halves_are_those_of_scikit_learn():
    train, test, source = Digits('train'), Digits('test'), load_digits()
    assert (len(train), len(test)) == (898, 899)
    assert labels(train) == source.target[:898].tolist()
    assert labels(test) == source.target[898:].tolist()
    image = Digits('train', size=8).get_data_info(5)['img']
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image[..., 0], np.rint(source.images[5] * 255 / 16))
    assert train.get_data_info(0)['img'].shape == (16, 16, 3)


def test_a_subset_is_a_fixed_choice():
    a, b, other = Digits('train', subset=300), Digits('train', subset=300), Digits('train', subset=300, subset_seed=1)
    assert len(a) == len(set(ids(a))) == 300
    assert ids(a) == ids(b)
    assert ids(a) != ids(other)
    assert set(ids(Digits('train', subset=100))) < set(ids(a))
    assert min(np.bincount(labels(a))) >= 15


@pytest.mark.parametrize('part', [0.0, 0.2, 1.0])
def test_label_noise_changes_exactly_its_part(part):
    clean, noisy = Digits('train', subset=200), Digits('train', subset=200, label_noise=part)
    assert ids(clean) == ids(noisy)
    assert sum(a != b for a, b in zip(labels(clean), labels(noisy), strict=True)) == round(200 * part)


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (dict(split='val'), "'val'"),
        (dict(split='train', subset=899), r'subset .*898'),
        (dict(split='train', label_noise=1.5), 'label_noise'),
    ],
)
def test_bad_arguments_raise(arguments, says):
    with pytest.raises(ValueError, match=says):
        Digits(**arguments)


def test_it_is_registered():
    assert DATASETS.get('lckd_mm.Digits') is Digits or DATASETS.get('Digits') is Digits
