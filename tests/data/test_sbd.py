import logging
import os

import numpy as np
import pytest
from PIL import Image
from scenes import sbd
from scenes.sbd import convert_sbd, read_sbd_mask
from scenes.scene import voc_palette
from scipy.io import savemat
from scipy.sparse import csc_matrix

from lckd_mm.hosts import load_config

FLAT_PALETTE = [channel for colour in voc_palette() for channel in colour]


def mask_of(label, shape=(12, 17)):
    mask = np.zeros(shape, np.uint8)
    mask[2:7, 3:11] = label
    return mask


def write_mat(path, segmentation):
    """A file with the fields and types of SBD's own."""
    labels = np.unique(segmentation)
    boundaries = np.empty((20, 1), object)
    for k in range(20):
        boundaries[k, 0] = csc_matrix((segmentation == k + 1).astype(float))
    categories = labels[(labels > 0) & (labels <= 20)].astype(np.uint8).reshape(-1, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {'Boundaries': boundaries, 'Segmentation': segmentation, 'CategoriesPresent': categories}
    savemat(path, {'GTcls': fields}, do_compression=True)


def write_voc_mask(path, mask):
    picture = Image.fromarray(mask)
    picture.putpalette(FLAT_PALETTE)
    picture.save(path)


@pytest.fixture
def plain(tmp_path):
    return make_trees(tmp_path, 'dataset')


def make_trees(tmp_path, place):
    """SBD with a, b, c, d; VOC with a (train) and v (val) of its own; b is in VOC's val list alone."""
    source, voc = tmp_path / 'SBD', tmp_path / 'VOC2012'
    dataset = source / place
    for label, name in enumerate('abcd', start=17):
        write_mat(dataset / 'cls' / f'{name}.mat', mask_of(label))
    (dataset / 'train.txt').write_text('a\nc\n')
    (dataset / 'val.txt').write_text('b\nd\n')
    (voc / 'SegmentationClass').mkdir(parents=True)
    own = mask_of(3)
    own[0, 0] = 255
    write_voc_mask(voc / 'SegmentationClass/a.png', own)
    write_voc_mask(voc / 'SegmentationClass/v.png', mask_of(4))
    lists = voc / 'ImageSets/Segmentation'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('a\n')
    (lists / 'val.txt').write_text('v\nb\n')
    return source, voc


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.mark.parametrize('place', ['benchmark_RELEASE/dataset', 'dataset', '.'])
def test_masks_lists_and_counts(tmp_path, place):
    source, voc = make_trees(tmp_path, place)
    done = convert_sbd(source, voc, progress=False)
    assert (done.found, done.added, done.from_voc, done.without_mask, done.without_picture) == (4, 2, 2, 0, 0)
    assert not done.complete
    assert (voc / 'ImageSets/Segmentation/aug.txt').read_text() == 'c\nd\n'
    aug = voc / 'SegmentationClassAug'
    assert sorted(os.listdir(aug)) == ['a.png', 'b.png', 'c.png', 'd.png', 'v.png']
    for name, label in (('b', 18), ('c', 19), ('d', 20)):
        picture = Image.open(aug / f'{name}.png')
        assert picture.mode == 'P'
        assert np.array_equal(np.asarray(picture), mask_of(label))
        assert picture.getpalette()[: 3 * 21] == FLAT_PALETTE[: 3 * 21]


def test_masks_of_voc_win_and_stay_as_they_are(plain):
    source, voc = plain
    before = contents(voc / 'SegmentationClass')
    convert_sbd(source, voc, progress=False)
    for name in ('a', 'v'):
        own, taken = voc / f'SegmentationClass/{name}.png', voc / f'SegmentationClassAug/{name}.png'
        assert taken.read_bytes() == own.read_bytes()
        assert os.path.samefile(own, taken)
    assert np.asarray(Image.open(voc / 'SegmentationClassAug/a.png'))[0, 0] == 255
    assert contents(voc / 'SegmentationClass') == before


def test_masks_are_copied_where_links_are_not_possible(plain, monkeypatch):
    source, voc = plain

    def refuse(*args):
        raise OSError('no links here')

    monkeypatch.setattr(os, 'link', refuse)
    convert_sbd(source, voc, progress=False)
    own, taken = voc / 'SegmentationClass/a.png', voc / 'SegmentationClassAug/a.png'
    assert taken.read_bytes() == own.read_bytes()
    assert not os.path.samefile(own, taken)


def test_second_run_changes_nothing_but_masks_that_voc_has_by_now(plain):
    source, voc = plain
    first = convert_sbd(source, voc, progress=False)
    before = contents(voc)
    assert convert_sbd(source, voc, progress=False) == first
    assert contents(voc) == before
    write_voc_mask(voc / 'SegmentationClass/c.png', mask_of(7))
    convert_sbd(source, voc, progress=False)
    assert np.array_equal(np.asarray(Image.open(voc / 'SegmentationClassAug/c.png')), mask_of(7))


def test_without_lists_every_mat_counts(plain):
    source, voc = plain
    for split in ('train', 'val'):
        (source / f'dataset/{split}.txt').unlink()
    assert convert_sbd(source, voc, progress=False).added == 2
    assert (voc / 'ImageSets/Segmentation/aug.txt').read_text() == 'c\nd\n'


def test_ids_without_mask_or_picture_are_left_out(plain):
    source, voc = plain
    (source / 'dataset/train.txt').write_text('a\nc\nlost\n')
    (voc / 'JPEGImages').mkdir()
    (voc / 'JPEGImages/d.jpg').write_bytes(b'')
    done = convert_sbd(source, voc, progress=False)
    assert (done.added, done.without_mask, done.without_picture) == (1, 1, 1)
    assert (voc / 'ImageSets/Segmentation/aug.txt').read_text() == 'd\n'


def test_incomplete_sbd_is_a_warning_and_a_complete_one_is_not(plain, caplog, monkeypatch):
    source, voc = plain
    with caplog.at_level(logging.INFO, logger='scenes.sbd'):
        convert_sbd(source, voc, progress=False)
        assert 'found 4 of 11,355 masks and added 2 of 9,118' in caplog.text
        monkeypatch.setattr(sbd, 'EXPECTED_FOUND', 4)
        monkeypatch.setattr(sbd, 'EXPECTED_ADDED', 2)
        convert_sbd(source, voc, progress=False)
    assert [record.levelname for record in caplog.records] == ['WARNING', 'INFO']


def test_fits_the_config_of_mmsegmentation(plain):
    source, voc = plain
    convert_sbd(source, voc, progress=False)
    parts = load_config('mmseg::_base_/datasets/pascal_voc12_aug.py').train_dataloader.dataset.datasets
    listed = [(part, name) for part in parts for name in (voc / part.ann_file).read_text().split()]
    assert all((voc / part.data_prefix.seg_map_path / f'{name}.png').is_file() for part, name in listed)
    assert sorted(name for _, name in listed) == ['a', 'c', 'd']


def test_float_and_ignored_labels(tmp_path):
    mask = mask_of(20)
    mask[0] = 255
    write_mat(tmp_path / 'x.mat', mask.astype(float))
    read = read_sbd_mask(tmp_path / 'x.mat')
    assert read.dtype == np.uint8
    assert np.array_equal(read, mask)


def without_colours(source, voc):
    Image.open(voc / 'SegmentationClass/a.png').convert('RGB').save(voc / 'SegmentationClass/a.png')


def mat(write):
    return lambda source, voc: write(source / 'dataset/cls/c.mat')


BAD = {
    'no sbd': (lambda source, voc: source.rename(source.with_name('gone')), 'no folder'),
    'no cls': (lambda source, voc: (source / 'dataset/cls').rename(source / 'dataset/inst'), 'dataset/cls, cls'),
    'no mat': (lambda source, voc: [p.unlink() for p in (source / 'dataset/cls').iterdir()], 'no .mat file'),
    'truncated': (mat(lambda path: path.write_bytes(path.read_bytes()[:200])), 'c.mat'),
    'garbage': (mat(lambda path: path.write_bytes(b'garbage' * 100)), 'c.mat'),
    'other struct': (mat(lambda path: savemat(path, {'GTinst': {'Segmentation': mask_of(1)}})), 'c.mat'),
    'not a picture': (mat(lambda path: savemat(path, {'GTcls': {'Segmentation': np.zeros((2, 3, 4))}})), '(2, 3, 4)'),
    'label 21': (mat(lambda path: write_mat(path, mask_of(21))), 'c.mat holds the label 21'),
    'no voc': (lambda source, voc: voc.rename(voc.with_name('gone')), 'SegmentationClass'),
    'no val.txt': (lambda source, voc: (voc / 'ImageSets/Segmentation/val.txt').unlink(), 'val.txt'),
    'rgb': (without_colours, 'a.png has mode RGB'),
}


@pytest.mark.parametrize('how', BAD)
def test_bad_input(plain, how):
    source, voc = plain
    spoil, says = BAD[how]
    spoil(source, voc)
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        convert_sbd(source, voc, progress=False)
    assert says in str(caught.value)
    assert '\n' not in str(caught.value)
    # aug.txt comes last, so that a list never names what is not there; no temporary file stays.
    assert not (voc / 'ImageSets/Segmentation/aug.txt').exists()
    assert not [path for path in voc.rglob('*') if '.tmp-' in path.name]


def test_failed_write_leaves_the_old_file(plain, monkeypatch):
    source, voc = plain
    convert_sbd(source, voc, progress=False)
    before = contents(voc)

    def fail(self, path, format=None):
        path.write_bytes(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, 'save', fail)
    with pytest.raises(KeyboardInterrupt):
        convert_sbd(source, voc, progress=False)
    assert contents(voc) == before
