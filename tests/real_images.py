"""A few images in exactly the layouts in which BCCD, the nuclei and Fashion-MNIST are published."""

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections import Counter

import numpy as np
from PIL import Image
from scenes import bccd, fashion_mnist, nuclei

NUCLEI = {'0a1b2c3d4e5f': 'train', '1a1b2c3d4e5f': 'train', '2a1b2c3d4e5f': 'val', '3a1b2c3d4e5f': 'test'}
CELLS = dict(train=('BloodImage_00001', 'BloodImage_00003'), val=('BloodImage_00007',), test=('BloodImage_00011',))
CELL = """<object><name>{}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>
<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""
BOXES = [
    ('WBC', 260, 177, 491, 376),
    ('RBC', 78, 336, 184, 435),
    ('RBC', 453, 81, 555, 182),
    ('Platelets', 9, 9, 50, 48),
]


def encoded(pixels, kind):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_zip(path, files):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path, files):
    with tarfile.open(path, 'w:gz') as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def bccd_files():
    """As GitHub's archive has them: with a folder of the same names above, and a box without area in each image."""
    files, rng = {'BCCD_Dataset-master/Annotations/BloodImage_00001.xml': b'an older one'}, np.random.default_rng(0)
    for split, names in CELLS.items():
        files[f'BCCD_Dataset-master/BCCD/ImageSets/Main/{split}.txt'] = ('\n'.join(names) + '\n').encode()
        for name in names:
            boxes = [*BOXES, ('RBC', 620, 430, 620, 430)]
            inside = f'<folder>JPEGImages</folder><filename>{name}.jpg</filename><path>/home/me/{name}.jpg</path>'
            inside += '<size><width>640</width><height>480</height><depth>3</depth></size><segmented>0</segmented>'
            inside += ''.join(CELL.format(*box) for box in boxes)
            folder = 'BCCD_Dataset-master/BCCD'
            files[f'{folder}/Annotations/{name}.xml'] = f'<annotation>{inside}</annotation>'.encode()
            pixels = rng.integers(256, size=(15, 20, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
            files[f'{folder}/JPEGImages/{name}.jpg'] = encoded(pixels, 'JPEG')
    return files


def instances_of(index):
    """Two nuclei that touch, and one apart, in an image of 112 x 128 or 96 x 96: none is smaller than a crop."""
    instances = np.zeros((112, 128) if index % 2 else (96, 96), np.uint16)
    instances[4:16, 5:17], instances[4:16, 17:30], instances[30:33, 20:22] = 1, 2, 3
    return instances


def nuclei_files(layout):
    """``'masks'``: an RGBA image and a mask for each nucleus, as stage1_train has them. ``'instances'``: numbers."""
    files, rng = {}, np.random.default_rng(0)
    for index, name in enumerate([*NUCLEI, 'ffffffffffff']):
        instances = instances_of(index)
        pixels = rng.integers(256, size=(*instances.shape, 3), dtype=np.uint8)
        if layout == 'instances':
            files[f'nuclei/images/{name}.png'] = encoded(pixels, 'PNG')
            files[f'nuclei/instances/{name}.png'] = encoded(instances, 'PNG')
            continue
        folder = f'fixes-master/stage1_train/{name}{"0" * 52}'
        opaque = np.full((*instances.shape, 1), 255, np.uint8)
        files[f'{folder}/images/{name}{"0" * 52}.png'] = encoded(np.concatenate([pixels, opaque], 2), 'PNG')
        for number in (1, 2, 3):
            mask = np.where(instances == number, 255, 0).astype(np.uint8)
            files[f'{folder}/masks/{number:064x}.png'] = encoded(mask, 'PNG')
    return files


def fashion_files(train=96, t10k=20):
    files, rng = {}, np.random.default_rng(0)
    for split, count in dict(train=train, t10k=t10k).items():
        for kind, shape, top in (('images-idx3', (count, 28, 28), 256), ('labels-idx1', (count,), 10)):
            head = b''.join(n.to_bytes(4, 'big') for n in (0x800 + len(shape), *shape))
            content = head + rng.integers(top, size=shape, dtype=np.uint8).tobytes()
            files[f'{split}-{kind}-ubyte'] = shape, content
    return files


def expect_few(patch, tmp_path):
    """The converters expect the files here in place of the published ones."""
    patch.setattr(bccd, 'IMAGES', {split: len(names) for split, names in CELLS.items()})
    patch.setattr(bccd, 'BOXES', {n: 4 * c for n, c in Counter(name for name, *_ in BOXES).items()})
    names = tmp_path / 'nuclei.txt'
    names.write_text(''.join(f'{name} {split}\n' for name, split in NUCLEI.items()))
    patch.setattr(nuclei, 'LIST', names)
    patch.setattr(nuclei, 'NUCLEI', 3 * len(NUCLEI))
    expected = {n: (hashlib.sha256(content).hexdigest(), shape) for n, (shape, content) in fashion_files().items()}
    patch.setattr(fashion_mnist, 'FILES', expected)


def write_real_images(root, patch):
    """``root/bccd``, ``root/nuclei``, ``root/fashion_mnist``, converted from archives in the published layouts."""
    root.mkdir(exist_ok=True)
    expect_few(patch, root)
    bccd.convert_bccd(write_zip(root / 'bccd.zip', bccd_files()), root / 'bccd', progress=False)
    source = write_tar(root / 'nuclei.tar.gz', nuclei_files('masks'))
    nuclei.convert_nuclei(source, root / 'nuclei', progress=False)
    (root / 'gz').mkdir()
    for name, (_, content) in fashion_files().items():
        (root / 'gz' / f'{name}.gz').write_bytes(gzip.compress(content))
    fashion_mnist.convert_fashion_mnist(root / 'gz', root / 'fashion_mnist')
    return root
