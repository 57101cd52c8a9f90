import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scenes import digit_scenes
from scenes import scene as drawing
from scenes.digit_scenes import write_digit_scenes
from scenes.scene import CLASSES, PALETTE, VOID, compose_scene

from lckd_mm.errors import sigterm_raises

REPO = Path(__file__).resolve().parents[2]


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_digit_scenes(tmp_path_factory.mktemp('scenes') / 'digits', train=30, val=10, progress=False)


def test_palette_is_that_of_voc():
    # background, aeroplane, bicycle, bird, boat, ... potted plant, and the void of VOC's own masks
    assert PALETTE[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    full = digit_scenes.voc_palette()
    assert (len(full), full[16], full[255]) == (256, (0, 64, 0), (224, 224, 192))
    assert len(CLASSES) == len(PALETTE) == 11
    assert (CLASSES[0], CLASSES[1], CLASSES[10]) == ('background', 'zero', 'nine')


def test_two_runs_write_the_same_bytes(root, tmp_path):
    again = write_digit_scenes(tmp_path / 'elsewhere', train=30, val=10, progress=False)
    assert contents(again) == contents(root)
    assert len(contents(root)) == 40 * 3 + 6 + 2 + 1


def test_scene_does_not_depend_on_how_many_are_asked_for(root, tmp_path):
    fewer = contents(write_digit_scenes(tmp_path / 'fewer', train=3, val=2, progress=False))
    more = contents(root)
    scenes = [name for name in fewer if not name.startswith(('ImageSets', 'coco')) and name != 'digit_scenes.json']
    assert len(scenes) == 5 * 3
    assert all(fewer[name] == more[name] for name in scenes)


def test_seed_split_and_index_each_change_the_scene():
    images = [compose_scene(*a, seed=s).image for a, s in [(('train', 0), 0), (('train', 1), 0), (('val', 0), 0)]]
    images.append(compose_scene('train', 0, seed=1).image)
    assert len({image.tobytes() for image in images}) == 4


def test_lists(root):
    train, val = ([f'{split}_{i:06d}' for i in range(count)] for split, count in (('train', 30), ('val', 10)))
    for task in ('Segmentation', 'Main'):
        lists = {file.stem: file.read_text().split() for file in (root / 'ImageSets' / task).iterdir()}
        assert lists == {'train': train, 'val': val, 'trainval': train + val}


def test_masks_are_palette_pictures(root):
    seen = set()
    for path in (root / 'SegmentationClass').glob('*.png'):
        mask = Image.open(path)
        assert (mask.mode, mask.size) == ('P', (96, 96))
        assert mask.getpalette()[:33] == [channel for colour in PALETTE for channel in colour]
        seen |= set(np.unique(np.asarray(mask)).tolist())
        image = Image.open(root / 'JPEGImages' / f'{path.stem}.jpg')
        assert (image.mode, image.size) == ('RGB', (96, 96))
    assert seen == {*range(11), VOID}


@pytest.mark.parametrize('index', range(10))
def test_files_hold_the_composed_scene(root, index):
    scene, name = compose_scene('val', index), f'val_{index:06d}'
    assert np.array_equal(np.asarray(Image.open(root / f'SegmentationClass/{name}.png')), scene.mask)
    jpeg = np.asarray(Image.open(root / f'JPEGImages/{name}.jpg')).astype(int)
    assert np.abs(jpeg - scene.image).mean() < 10
    tree = ET.parse(root / f'Annotations/{name}.xml').getroot()
    assert tree.findtext('filename') == f'{name}.jpg'
    assert [tree.findtext(f'size/{tag}') for tag in ('width', 'height', 'depth')] == ['96', '96', '3']
    assert tree.findtext('segmented') == '1'
    objects = tree.findall('object')
    assert [o.findtext('name') for o in objects] == [CLASSES[label] for label in scene.labels]
    assert [o.findtext('truncated') for o in objects] == [str(int(t)) for t in scene.truncated]
    assert {(o.findtext('difficult'), o.findtext('pose')) for o in objects} == {('0', 'Unspecified')}
    boxes = [[int(o.findtext(f'bndbox/{tag}')) for tag in ('xmin', 'ymin', 'xmax', 'ymax')] for o in objects]
    assert boxes == scene.boxes.tolist()


def test_objects_in_coco_s_files_are_those_of_the_scenes(root):
    from pycocotools.coco import COCO

    for split, count in (('train', 30), ('val', 10)):
        coco = COCO(root / f'coco/{split}.json')
        assert {c['id']: c['name'] for c in coco.dataset['categories']} == dict(list(enumerate(CLASSES))[1:])
        names = [f'{split}_{i:06d}.jpg' for i in range(count)]
        assert [image['file_name'] for image in coco.dataset['images']] == names
        for image in coco.dataset['images']:
            scene, annotations = compose_scene(split, image['id']), coco.imgToAnns[image['id']]
            assert (image['height'], image['width']) == scene.mask.shape
            assert [a['category_id'] for a in annotations] == scene.labels.tolist()
            for number, (annotation, box) in enumerate(zip(annotations, scene.boxes.tolist()), 1):
                left, top, right, bottom = box
                assert (coco.annToMask(annotation) == (scene.instances == number)).all()
                assert annotation['bbox'] == [left - 1, top - 1, right - left + 1, bottom - top + 1]
                assert annotation['area'] == (scene.instances == number).sum()


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('size', [48, 96])
def test_scene_is_consistent(split, size):
    for index in range(25):
        scene = compose_scene(split, index, size)
        count = len(scene.labels)
        assert 1 <= count <= 5
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == scene.mask.dtype == np.uint8
        assert set(np.unique(scene.instances)) == set(range(count + 1))
        for k, (label, box) in enumerate(zip(scene.labels, scene.boxes)):
            ys, xs = np.nonzero(scene.instances == k + 1)
            assert box.tolist() == [xs.min() + 1, ys.min() + 1, xs.max() + 1, ys.max() + 1]
            assert (scene.mask[ys, xs] == label).all()
        rest = scene.mask[scene.instances == 0]
        assert set(np.unique(rest)) == {0, VOID}


def test_a_void_ring_keeps_every_digit_from_the_background_and_from_other_digits():
    for index in range(30):
        scene = compose_scene('train', index)
        wide = np.pad(scene.instances, 1, mode='edge')
        void = np.pad(scene.mask == VOID, 1, mode='edge')
        for dy, dx in itertools.product(range(3), repeat=2):
            shifted, is_void = (x[dy : dy + 96, dx : dx + 96] for x in (wide, void))
            assert (is_void | (shifted == scene.instances))[scene.instances > 0].all()


def test_heights_are_in_proportion_to_the_size():
    heights = {}
    for size in (96, 192):
        boxes = np.concatenate([compose_scene('train', i, size).boxes for i in range(30)])
        heights[size] = boxes[:, 3] - boxes[:, 1] + 1
    # Turning and cutting stretch 14 to 44 a little.
    assert 8 <= np.percentile(heights[96], 2) < 18
    assert 38 < heights[96].max() <= 56
    assert np.median(heights[192]) / np.median(heights[96]) == pytest.approx(2, rel=0.15)


def test_splits_share_no_scan_and_labels_are_those_of_the_scans():
    from sklearn.datasets import load_digits

    targets = load_digits().target
    ids = {}
    for split in ('train', 'val'):
        scenes = [compose_scene(split, index, size=32) for index in range(80)]
        for scene in scenes:
            assert np.array_equal(targets[scene.scan_ids] + 1, scene.labels)
        ids[split] = np.concatenate([scene.scan_ids for scene in scenes])
    assert 0 <= ids['train'].min() <= ids['train'].max() <= 897
    assert 898 <= ids['val'].min() <= ids['val'].max() <= 1796


def test_splits_share_no_pixel_of_a_photograph(monkeypatch):
    photos = drawing._photos()
    before = {split: [compose_scene(split, i, 64).image for i in range(12)] for split in ('train', 'val')}
    for split, other in (('train', 'val'), ('val', 'train')):
        blanked = tuple(photo.copy() for photo in photos)
        for photo, columns in zip(blanked, drawing._PHOTO_COLUMNS[other]):
            photo[:, columns] = 0
        monkeypatch.setattr(drawing, '_photos', lambda blanked=blanked: blanked)
        assert all(np.array_equal(compose_scene(split, i, 64).image, before[split][i]) for i in range(12))
        assert not any(np.array_equal(compose_scene(other, i, 64).image, before[other][i]) for i in range(12))


def test_classes_are_balanced():
    counts = np.bincount(np.concatenate([compose_scene('train', i, 32).labels for i in range(300)]), minlength=11)
    assert counts[0] == 0
    # 300 scenes of 3 digits: 90 a class, standard deviation 9
    assert counts[1:].min() > 60
    assert counts[1:].max() < 120


def test_digits_stand_out_from_what_surrounds_them():
    gaps = []
    for index in range(40):
        scene = compose_scene('val', index)
        grey = cv2.cvtColor(scene.image, cv2.COLOR_RGB2LAB)[..., 0].astype(float) / 2.55
        for k, (left, top, right, bottom) in enumerate(scene.boxes):
            part = (slice(max(top - 3, 0), bottom + 2), slice(max(left - 3, 0), right + 2))
            ink, ground = scene.instances[part] == k + 1, scene.mask[part] == 0
            gaps.append(abs(grey[part][ink].mean() - grey[part][ground].mean()) if ground.any() else 100)
    # of CIE lightness, in which 1 is just visible and black to white is 100
    assert np.median(gaps) > 30
    assert np.percentile(gaps, 10) > 10


@pytest.mark.parametrize(('name', 'value'), [('size', 31), ('size', 96.0), ('train', -1), ('val', -5), ('seed', -1)])
def test_bad_parameters(tmp_path, name, value):
    with pytest.raises(ValueError, match=f'{name} must be ') as caught:
        write_digit_scenes(tmp_path / 'out', progress=False, **{name: value})
    assert '\n' not in str(caught.value)
    with pytest.raises(ValueError, match='nothing to write'):
        write_digit_scenes(tmp_path / 'out', progress=False, train=0, val=0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="'test'"):
        compose_scene('test', 0)


def test_one_split_alone_and_the_same_parameters_return_at_once(tmp_path, monkeypatch, capsys):
    root = write_digit_scenes(tmp_path / 'out', train=0, val=1, progress=False)
    assert (root / 'ImageSets/Segmentation/train.txt').read_text() == ''
    assert (root / 'ImageSets/Segmentation/trainval.txt').read_text() == 'val_000000\n'
    assert capsys.readouterr().out == ''
    monkeypatch.setattr(digit_scenes, 'compose_scene', None)
    assert write_digit_scenes(root, train=0, val=1) == root
    assert 'nothing to do' in capsys.readouterr().out


def test_other_parameters_or_lost_files_are_refused_and_force_replaces(tmp_path):
    root = write_digit_scenes(tmp_path / 'out', train=2, val=1, progress=False)
    before = contents(root)
    (root / 'JPEGImages/train_000001.jpg').unlink()
    with pytest.raises(FileExistsError, match='lost 1 of its files'):
        write_digit_scenes(root, train=2, val=1, progress=False)
    write_digit_scenes(root, train=2, val=1, progress=False, force=True)
    assert contents(root) == before
    with pytest.raises(FileExistsError, match=r'train=2, val=1, .*train=1, val=1'):
        write_digit_scenes(root, train=1, val=1, progress=False)
    assert contents(root) == before
    write_digit_scenes(root, train=1, val=1, progress=False, force=True)
    assert sorted(path.name for path in (root / 'JPEGImages').iterdir()) == ['train_000000.jpg', 'val_000000.jpg']
    assert [path.name for path in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize(
    'files',
    [
        {},
        {'out/mine.txt': 'mine'},
        {'out/digit_scenes.json': json.dumps({'parameters': dict(train=1, val=1, size=96, seed=0)})},
        {'out/digit_scenes.json': '{'},
        {'out': 'mine'},
    ],
)
def test_what_others_wrote_is_never_touched(tmp_path, files):
    root = tmp_path / 'out'
    if 'out' not in files:
        root.mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    for force in (False, True):
        with pytest.raises(FileExistsError, match='not written by this tool'):
            write_digit_scenes(root, train=1, val=1, progress=False, force=force)
        assert contents(tmp_path) == before


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    compose = digit_scenes.compose_scene

    def interrupted(split, index, size, seed):
        if index == 2:
            assert len(list(tmp_path.glob('.out.tmp-*/JPEGImages/*.jpg'))) == 2
            raise KeyboardInterrupt
        return compose(split, index, size, seed)

    monkeypatch.setattr(digit_scenes, 'compose_scene', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_digit_scenes(tmp_path / 'out', train=5, val=0, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_scenes_of_an_older_version_are_made_anew(tmp_path):
    root = write_digit_scenes(tmp_path / 'scenes', train=1, val=1, progress=False)
    mark = json.loads((root / 'digit_scenes.json').read_text())
    shutil.rmtree(root / 'coco')
    (root / 'digit_scenes.json').write_text(json.dumps(mark | dict(version=1)))
    with pytest.raises(FileExistsError, match='holds version 1'):
        write_digit_scenes(root, train=2, val=1, progress=False)
    write_digit_scenes(root, train=1, val=1, progress=False)
    assert json.loads((root / 'digit_scenes.json').read_text()) == mark and (root / 'coco/train.json').is_file()


def test_interrupted_force_keeps_the_old_folder(tmp_path, monkeypatch):
    root = write_digit_scenes(tmp_path / 'out', train=1, val=0, progress=False)
    before = contents(tmp_path)
    rename = Path.rename

    def failing(self, target):
        # The old folder is aside already; the new one cannot take its place.
        if '.tmp-' in self.name and not self.name.endswith('-old'):
            raise OSError('no')
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', failing)
    with pytest.raises(OSError, match='no'):
        write_digit_scenes(root, train=2, val=0, progress=False, force=True)
    assert contents(tmp_path) == before


def start_long_run(root):
    code = 'import sys; from scenes import digit_scenes as d; d.write_digit_scenes(sys.argv[1], 10**6, 0)'
    run = subprocess.Popen([sys.executable, '-c', code, str(root)], cwd=REPO / 'tools', stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(root.parent.glob('.out.tmp-*/Annotations/*.xml')):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return run


def test_sigterm_leaves_nothing(tmp_path):
    run = start_long_run(tmp_path / 'out')
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 143
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    run = start_long_run(tmp_path / 'out')
    run.kill()
    run.wait(timeout=60)
    assert len(list(tmp_path.glob('.out.tmp-*'))) == 1
    alive = tmp_path / f'.out.tmp-{socket.gethostname()}-{os.getpid()}-00000000'
    elsewhere = tmp_path / f'.out.tmp-not-{socket.gethostname()}-{run.pid}-00000000'
    neighbour = tmp_path / f'.output.tmp-{socket.gethostname()}-{run.pid}-00000000'
    for folder in (alive, elsewhere, neighbour):
        folder.mkdir()
    write_digit_scenes(tmp_path / 'out', train=1, val=0, progress=False)
    assert set(tmp_path.iterdir()) == {tmp_path / 'out', alive, elsewhere, neighbour}


def test_sigterm_handling_is_given_back(tmp_path):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with sigterm_raises():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        # A program's own handler, here that of the outer block, stays in place.
        outer = signal.getsignal(signal.SIGTERM)
        with sigterm_raises():
            assert signal.getsignal(signal.SIGTERM) is outer
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
