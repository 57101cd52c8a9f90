"""BCCD, nuclei and Fashion-MNIST: what is written, from each layout, and what is said if something is missing."""

import gzip
import xml.etree.ElementTree as ET
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from real_images import (
    BOXES,
    CELLS,
    NUCLEI,
    bccd_files,
    encoded,
    expect_few,
    fashion_files,
    instances_of,
    nuclei_files,
    write_real_images,
    write_tar,
    write_zip,
)
from scenes import bccd, fashion_mnist, nuclei
from scenes.bccd import convert_bccd
from scenes.coco import run_lengths
from scenes.fashion_mnist import convert_fashion_mnist
from scenes.nuclei import class_map, convert_nuclei, split_of_images

NO_NUCLEI = encoded(np.zeros_like(instances_of(1)), 'PNG')


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        root = write_real_images(tmp_path_factory.mktemp('data') / 'root', patch)
    return root


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_bccd_keeps_pictures_and_boxes_with_an_area(written):
    published = {name.partition('/BCCD/')[2]: content for name, content in bccd_files().items()}
    for split, names in CELLS.items():
        assert (written / f'bccd/ImageSets/Main/{split}.txt').read_text().split() == list(names)
        for name in names:
            assert (written / f'bccd/JPEGImages/{name}.jpg').read_bytes() == published[f'JPEGImages/{name}.jpg']
            root = ET.parse(written / f'bccd/Annotations/{name}.xml').getroot()
            found = [(o.findtext('name'), *(int(side.text) for side in o.find('bndbox'))) for o in root.iter('object')]
            assert found == BOXES and root.find('path') is None
    assert sorted(p.name for p in written.iterdir() if p.name.startswith('.')) == []


def test_nuclei_have_the_same_files_from_either_layout(written, tmp_path, monkeypatch, caplog):
    expect_few(monkeypatch, tmp_path)
    files = nuclei_files('instances')
    # Numbers with a gap.
    files['nuclei/instances/0a1b2c3d4e5f.png'] = encoded(instances_of(0) * 2, 'PNG')
    source = write_zip(tmp_path / 'nuclei.zip', files)
    assert contents(convert_nuclei(source, tmp_path / 'out', progress=False)) == contents(written / 'nuclei')
    assert 'differ from those that the figures here are of' in caplog.text
    assert sum(name.startswith('images/') for name in contents(tmp_path / 'out')) == len(NUCLEI)


def test_a_border_is_two_pixels_wide_on_each_side_of_a_nucleus(written):
    instances = instances_of(0)
    expected = np.where(instances > 0, 2, 0)
    # Both of the nuclei that touch have a border at the other; the third is too small for an inside.
    expected[6:14, 7:15] = expected[6:14, 19:28] = 1
    assert (class_map(instances) == expected).all()
    mask = Image.open(written / 'nuclei/masks/0a1b2c3d4e5f.png')
    assert mask.mode == 'P' and (np.asarray(mask) == expected).all()


def test_nuclei_as_coco(written):
    from pycocotools.coco import COCO

    coco = COCO(written / 'nuclei/annotations/train.json')
    assert [image['file_name'] for image in coco.dataset['images']] == ['0a1b2c3d4e5f.png', '1a1b2c3d4e5f.png']
    for index, image in enumerate(coco.dataset['images']):
        instances = instances_of(index)
        assert (image['height'], image['width']) == instances.shape
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        assert [a['bbox'] for a in annotations] == [[5, 4, 12, 12], [17, 4, 13, 12], [20, 30, 2, 3]]
        for number, annotation in enumerate(annotations, 1):
            assert annotation['area'] == (instances == number).sum()
            assert (coco.annToMask(annotation) == (instances == number)).all()


def test_run_lengths_begin_with_zeros_and_run_down_the_columns():
    assert run_lengths(np.array([[0, 1], [1, 1], [1, 0]], bool)) == [1, 4, 1]
    assert run_lengths(np.array([[1, 0], [0, 1]], bool)) == [0, 1, 2, 1]


def test_the_list_of_nuclei_is_whole_and_bccds_counts_are_the_authors():
    splits = list(split_of_images().values())
    assert {s: splits.count(s) for s in set(splits)} == dict(train=369, val=84, test=85)
    assert sum(bccd.IMAGES.values()) == 364 and sum(bccd.BOXES.values()) == 4888 - 2 and nuclei.NUCLEI == 16667


@pytest.mark.parametrize(
    ('names', 'split'),
    [
        ('00fe7f685038 8c077eb06bce e0bc74a1c05c e2e2f3dc77bd', 'val'),
        ('01e6ee44908c 2eb593a19cf1 36f73c7b2349 867208e5c5e7', 'test'),
        ('220417f36025 32356d746cb4 6018fb9b3f9a ca02592b2d64', 'train'),
    ],
)
def test_the_four_tiles_of_a_micrograph_are_in_one_split(names, split):
    assert {split_of_images()[name] for name in names.split()} == {split}


def test_fashion_mnist_is_unzipped(written):
    for name, (_, content) in fashion_files().items():
        assert (written / 'fashion_mnist' / name).read_bytes() == content


def test_a_second_call_does_nothing_and_other_folders_are_left_alone(written, tmp_path, monkeypatch, capsys):
    before = contents(written / 'bccd')
    assert convert_bccd('absent.zip', written / 'bccd') == written / 'bccd'
    assert 'nothing to do' in capsys.readouterr().out and contents(written / 'bccd') == before
    (tmp_path / 'mine').mkdir()
    with pytest.raises(FileExistsError, match='not written by this tool'):
        convert_bccd('absent.zip', tmp_path / 'mine')
    expect_few(monkeypatch, tmp_path)
    files = {f'my_{name.replace("BCCD_Dataset-master", "BCCD")}': content for name, content in bccd_files().items()}
    out = convert_bccd(write_zip(tmp_path / 'b.zip', files), tmp_path / 'out', progress=False)
    (out / 'JPEGImages/BloodImage_00001.jpg').unlink()
    with pytest.raises(FileExistsError, match=r'lost 1 of its files, such as JPEGImages/BloodImage_00001\.jpg'):
        convert_bccd('absent.zip', out)


@pytest.mark.parametrize(
    ('convert', 'files', 'says'),
    [
        (convert_bccd, {}, r'no ImageSets/Main/train\.txt in'),
        (convert_bccd, {'BCCD/JPEGImages/BloodImage_00001.jpg': None}, r'lacks 1 files, such as JPEGImages/'),
        (convert_bccd, {'BCCD/Annotations/BloodImage_00001.xml': b'<annotation>'}, 'as XML'),
        (convert_bccd, {'BCCD/ImageSets/Main/val.txt': b'BloodImage_00001'}, 'BloodImage_00001 is listed twice'),
        (convert_bccd, {'BCCD/Annotations/BloodImage_00001.xml': b'<annotation/>'}, r'has 1 test, .* expected'),
        (convert_nuclei, {}, r"for 4 of 4 names, such as '0a1b2c3d4e5f'"),
        (convert_nuclei, {'nuclei/instances/1a1b2c3d4e5f.png': None}, r"for 1 of 4 names, such as '1a1b2c3d4e5f'"),
        (convert_nuclei, {'nuclei/images/1a1b2c3d4e5f.png': b'no'}, r'cannot read nuclei/images/1a1b'),
        (convert_nuclei, {'nuclei/instances/0a1b2c3d4e5f.png': NO_NUCLEI}, r'is \(112, 128\), its image is \(96, 96\)'),
        (convert_nuclei, {'nuclei/instances/1a1b2c3d4e5f.png': NO_NUCLEI}, r'has 9 nuclei in 4 images, expected 12'),
        (convert_fashion_mnist, {}, r'no train-images-idx3-ubyte\.gz'),
        (convert_fashion_mnist, {'train-images-idx3-ubyte.gz': b'no'}, 'cannot unzip'),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_left(convert, files, says, tmp_path, monkeypatch):
    expect_few(monkeypatch, tmp_path)
    everything = bccd_files() if convert is convert_bccd else nuclei_files('instances')
    everything = {name.removeprefix('BCCD_Dataset-master/'): content for name, content in everything.items()}
    if files:
        everything = {n: c for n, c in (everything | files).items() if c is not None}
    else:
        everything = {'notes.md': b'nothing'}
    source = write_tar(tmp_path / 'source.tar.gz', everything)
    arguments = () if convert is convert_fashion_mnist else (False,)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        convert(source, tmp_path / 'out', *arguments)
    assert not (tmp_path / 'out').exists() and not list(tmp_path.glob('.out*'))


def test_a_source_that_is_no_archive_or_is_absent(tmp_path):
    (tmp_path / 'file.zip').write_text('no archive')
    with pytest.raises(ValueError, match='as a tar or zip archive'):
        convert_nuclei(tmp_path / 'file.zip', tmp_path / 'out')
    with pytest.raises(FileNotFoundError, match='give the downloaded archive'):
        convert_nuclei(tmp_path / 'absent', tmp_path / 'out')
    damaged = tmp_path / 'damaged.zip'
    with zipfile.ZipFile(damaged, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.png', b'a' * 9)
    damaged.write_bytes(damaged.read_bytes().replace(zlib.compress(b'a' * 9, wbits=-15), b'\xff' * 5, 1))
    with pytest.raises(ValueError, match='as a tar or zip archive'):
        convert_nuclei(damaged, tmp_path / 'out')


def test_fashion_mnist_of_another_content(tmp_path, monkeypatch):
    expect_few(monkeypatch, tmp_path)
    for name, (_, content) in fashion_files(train=95).items():
        (tmp_path / f'{name}.gz').write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r'not the published file of shape \(96, 28, 28\)'):
        convert_fashion_mnist(tmp_path, tmp_path / 'out')
    assert fashion_mnist.FILES['t10k-labels-idx1-ubyte'][1] == (20,)
