"""One digit scene: handwriting over a photograph, composed from data that scikit-learn ships."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np


def voc_palette(colours: int = 256) -> tuple[tuple[int, int, int], ...]:
    """The colour map of PASCAL VOC: a label's bits go in turn to red, green and blue, starting at their top bits."""
    return tuple(
        tuple(sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3))
        for label in range(colours)
    )


CLASSES = ('background', 'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
PALETTE = voc_palette(len(CLASSES))
VOID = 255
SPLITS = ('train', 'val')
MAX_DIGITS = 5

_SCANS = {'train': slice(0, 898), 'val': slice(898, None)}
# Columns of each photograph (the pagoda, the dahlia). Both splits see both pictures and share no pixel of either.
_PHOTO_COLUMNS = {'train': (slice(0, 380), slice(0, 300)), 'val': (slice(380, None), slice(300, None))}
_CROP_SIDES = (60, 190)  # pixels of the photograph, whatever the size of the scene
_HEIGHTS = (14 / 96, 44 / 96)  # of the scene's side
_MAX_ANGLE = 25.0
_MIN_VISIBLE = 0.8  # of a digit's ink, so that no digit is so hidden that it would have to be dropped
_MAX_BOX_OVERLAP = 0.25  # of the smaller box; ink alone would let a digit sit in the hole of another
_INK = 0.5  # minimum darkness in a scan that counts as ink
_RING = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class Scene:
    """One picture with its annotations.

    image: ``(S, S, 3)`` uint8, RGB.
    mask: ``(S, S)`` uint8: 0 background, 1 to 10 the digits 0 to 9, 255 the ring around each digit.
    instances: ``(S, S)`` uint8: 0 for background and ring, ``k + 1`` where digit ``k`` is visible.
    boxes: ``(N, 4)`` int64: xmin, ymin, xmax, ymax of the visible ink, counted from 1 and inclusive, as VOC does.
    labels: ``(N,)`` int64 in 1 to 10, indices into ``CLASSES``.
    scan_ids: ``(N,)`` int64, indices into ``sklearn.datasets.load_digits()``.
    truncated: ``(N,)`` bool: the frame cuts some of the ink.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scan_ids: np.ndarray
    truncated: np.ndarray


@lru_cache(maxsize=1)
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 scans, ``(1797, 8, 8)`` float32 in [0, 1], and their digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target


@lru_cache(maxsize=1)
def _photos() -> tuple[np.ndarray, ...]:
    """The two photographs, RGB uint8."""
    from sklearn.datasets import load_sample_images

    return tuple(load_sample_images().images)


def _lab(colour: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of one RGB colour in [0, 255]."""
    return cv2.cvtColor((colour.reshape(1, 1, 3) / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[0, 0]


def _random_colour(rng: np.random.Generator) -> np.ndarray:
    hsv = np.array([rng.uniform(0, 360), rng.uniform(0, 0.95), rng.uniform(0.08, 1.0)], np.float32)
    return cv2.cvtColor(hsv.reshape(1, 1, 3), cv2.COLOR_HSV2RGB)[0, 0] * 255


def _contrasting_colour(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The first of up to 24 random colours that clearly contrasts with ``background``, else the best of them."""
    target = _lab(background)
    best, best_gap = None, -1.0
    for _ in range(24):
        colour = _random_colour(rng)
        gap = _lab(colour) - target
        # Thin strokes are seen by lightness far more than by hue, so hue counts for a third.
        distance = float(np.hypot(gap[0], np.hypot(gap[1], gap[2]) / 3))
        if distance > best_gap:
            best, best_gap = colour, distance
        if distance > 42:
            break
    return best


def _background(split: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """A crop of a photograph, flipped, scaled, blurred and re-lit: ``(size, size, 3)`` float32 in [0, 255]."""
    which = int(rng.integers(2))
    region = _photos()[which][:, _PHOTO_COLUMNS[split][which]]
    side = int(rng.integers(_CROP_SIDES[0], _CROP_SIDES[1] + 1))
    top, left = (int(rng.integers(extent - side + 1)) for extent in region.shape[:2])
    crop = region[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    kernel = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    crop = cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=kernel)
    crop = crop.astype(np.float32)
    if rng.random() < 0.5:
        crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.5, 2.0) * size / 96)
    # Permute and tint the channels: otherwise two photographs would give only two colour schemes.
    crop = crop[..., rng.permutation(3)] * rng.uniform(0.75, 1.25, 3)
    grey = crop.mean(axis=-1, keepdims=True)
    crop = grey + rng.uniform(0.3, 0.9) * (crop - grey)
    # Limit the gain by the highlights: overexposed petals look like flat paper.
    gain = np.clip(rng.uniform(60, 180) / max(crop.mean(), 1), 0.5, min(2.5, 250 / max(np.percentile(crop, 99), 1)))
    mean = gain * crop.mean(axis=(0, 1))
    return np.clip((gain * crop - mean) * rng.uniform(0.4, 0.9) + mean, 0, 255).astype(np.float32)


def _draw_distractors(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draw strokes, arcs and patches in similar colours to the digits'; none is closed like a 0 or upright like a 1."""
    size = len(image)
    for _ in range(int(rng.integers(0, 4))):
        layer = np.zeros((size, size), np.uint8)
        kind = int(rng.integers(4))
        width = max(1, round(rng.uniform(0.012, 0.04) * size))
        centre = rng.uniform(0, size, 2)
        if kind == 0:  # a wave right across the picture
            along = np.linspace(-0.2, 1.2, 48) * size
            wave = rng.uniform(0.03, 0.12) * size * np.sin(along / size * rng.uniform(4, 14) + rng.uniform(0, 6.3))
            angle = rng.uniform(0, np.pi)
            x = (along - size / 2) * np.cos(angle) - wave * np.sin(angle) + centre[0]
            y = (along - size / 2) * np.sin(angle) + wave * np.cos(angle) + centre[1]
            points = np.stack([x, y], axis=1).round().astype(np.int32)
            cv2.polylines(layer, [points], False, 255, width, cv2.LINE_AA)
        elif kind == 1:  # a wide open arc
            axes = tuple(int(a) for a in rng.uniform(0.2, 0.6, 2) * size)
            start = rng.uniform(0, 360)
            end = start + rng.uniform(60, 170)
            middle = tuple(int(c) for c in centre)
            cv2.ellipse(layer, middle, axes, rng.uniform(0, 180), start, end, 255, width, cv2.LINE_AA)
        elif kind == 2:  # a filled patch
            middle = tuple(int(c) for c in centre)
            axes = tuple(int(a) for a in rng.uniform(0.05, 0.2, 2) * size)
            cv2.ellipse(layer, middle, axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        else:  # hatching
            angle = rng.uniform(0, np.pi)
            along = np.array([np.cos(angle), np.sin(angle)])
            across = np.array([-along[1], along[0]])
            length, gap = rng.uniform(0.12, 0.3) * size, rng.uniform(2.2, 3.5) * width
            for k in range(int(rng.integers(3, 7))):
                ends = [centre + across * k * gap + along * length * s for s in (-0.5, 0.5)]
                a, b = (tuple(int(c) for c in end) for end in ends)
                cv2.line(layer, a, b, 255, width, cv2.LINE_AA)
        alpha = (layer / np.float32(255) * rng.uniform(0.45, 0.95)).astype(np.float32)[..., None]
        image += alpha * (_random_colour(rng) - image)


def _warped_ink(scan: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Opacity of a scan drawn at a random place, height and slant, and the fraction of its ink inside the frame.

    Args:
        scan: ``(8, 8)`` in [0, 1].
        size: side of the scene.
    Returns:
        ``(size, size)`` float32 in [0, 1], and the visible fraction in [0, 1].
    """
    zoom = 8
    ink = cv2.resize(np.pad(scan, 2), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    rows, columns = (np.flatnonzero((ink > _INK).any(axis=axis)) for axis in (1, 0))
    low, high = (extent * size for extent in _HEIGHTS)
    height = float(rng.uniform(low, high))
    scale = height / (rows[-1] - rows[0] + 1)
    angle = np.deg2rad(rng.triangular(-_MAX_ANGLE, 0, _MAX_ANGLE))
    shear = rng.uniform(-0.12, 0.12)
    widen = rng.uniform(0.9, 1.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = scale * turn @ np.array([[widen, shear], [0, 1]])
    source = np.array([columns[0] + columns[-1], rows[0] + rows[-1]]) / 2
    margin = 0.42 * height
    centre = rng.uniform(margin, size - margin, 2)
    # The canvas is wider than the scene, so that ink beyond the frame can be counted.
    pad = round(high)
    affine = np.column_stack([matrix, centre + pad - matrix @ source])
    canvas = cv2.warpAffine(ink, affine, (size + 2 * pad,) * 2, flags=cv2.INTER_LINEAR)
    # A ramp about one pixel wide, whatever the height: crisp large digits, anti-aliased small ones.
    alpha = np.clip(0.5 + (canvas - _INK) * (scale * zoom), 0, 1).astype(np.float32)
    total = np.count_nonzero(alpha >= 0.5)
    alpha = alpha[pad : pad + size, pad : pad + size]
    return alpha, np.count_nonzero(alpha >= 0.5) / total


def _tight_box(region: np.ndarray) -> tuple[int, int, int, int]:
    """The tight box of a non-empty region, counted from 1 and inclusive."""
    ys, xs = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    return int(xs[0]) + 1, int(ys[0]) + 1, int(xs[-1]) + 1, int(ys[-1]) + 1


def _box_overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """The intersection area of two boxes divided by the area of the smaller."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    return shared / min((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))


def _paint(image: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> None:
    """Draw one digit in a colour that contrasts with the background; some get a shadow."""
    size = len(image)
    around = cv2.dilate((alpha >= 0.5).astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    colour = _contrasting_colour(image[around].mean(axis=0), rng)
    if rng.random() < 0.3:
        shadow = cv2.GaussianBlur(alpha, (0, 0), 0.012 * size + 0.3)
        shift = rng.uniform(-0.02, 0.02, 2) * size
        shadow = cv2.warpAffine(shadow, np.float32([[1, 0, shift[0]], [0, 1, shift[1]]]), (size, size))
        # A dark shadow sets off a light digit but hides a dark one, which gets a glow instead.
        tone = 0.0 if colour.mean() > 110 else 255.0
        image += (0.45 * shadow)[..., None] * (tone - image)
    slope = rng.uniform(-25, 25, 2)
    grid = np.linspace(-1, 1, size, dtype=np.float32)
    fill = colour + (slope[0] * grid[:, None] + slope[1] * grid[None])[..., None]
    image += (alpha * rng.uniform(0.9, 1.0))[..., None].astype(np.float32) * (fill.astype(np.float32) - image)


def check_counts(size: int, **counts: int) -> None:
    """Raise ValueError for an invalid size or count."""
    for name, value in dict(counts, size=size).items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise ValueError(f'digit scenes: {name} must be a whole number of at least 0, got {value!r}')
    if size < 32:
        raise ValueError(f'digit scenes: size must be at least 32 pixels for digits to be legible, got {size}')


def compose_scene(split: str, index: int, size: int = 96, seed: int = 0) -> Scene:
    """Scene ``index`` of a split; a pure function of its four arguments.

    1 to 5 digits, about 14 to 44 pixels high at size 96 (other sizes in proportion), rotated by up to 25 degrees and
    slightly sheared. Later digits lie over earlier ones. A place is rejected if it would leave less than 80 % of any
    digit's ink visible, or make two boxes share more than 25 % of the smaller.

    Raises:
        ValueError: unknown split, negative index or seed, or ``size`` below 32.
    """
    if split not in SPLITS:
        raise ValueError(f"digit scenes: no split '{split}', expected one of {', '.join(SPLITS)}")
    check_counts(size=size, seed=seed, index=index)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scans, targets = _scans()
    ids = np.arange(len(targets))[_SCANS[split]]

    image = _background(split, size, rng)
    _draw_distractors(image, rng)
    instances = np.zeros((size, size), np.uint8)
    rings = np.zeros((size, size), bool)
    drawn, inks, scan_ids, truncated = [], [], [], []
    for _ in range(int(rng.integers(1, MAX_DIGITS + 1))):
        # Draw the class first, then one of its scans: classes stay balanced whatever the numbers of scans.
        scan_id = int(rng.choice(ids[targets[ids] == rng.integers(10)]))
        for _ in range(12):
            alpha, in_frame = _warped_ink(scans[scan_id], size, rng)
            ink = alpha >= 0.5
            ring = cv2.dilate(ink.astype(np.uint8), _RING).astype(bool) & ~ink
            left = np.bincount(instances[~(ink | ring)], minlength=len(inks) + 1)[1:]
            box = _tight_box(ink)
            if (
                in_frame >= _MIN_VISIBLE
                and all(seen >= _MIN_VISIBLE * whole for seen, whole in zip(left, inks))
                and all(_box_overlap(box, other) <= _MAX_BOX_OVERLAP for other in drawn)
            ):
                break
        else:
            continue
        _paint(image, alpha, rng)
        drawn.append(box)
        inks.append(np.count_nonzero(ink) / in_frame)
        scan_ids.append(scan_id)
        truncated.append(in_frame < 1)
        instances[ring], rings[ring] = 0, True
        instances[ink], rings[ink] = len(inks), False
    image += rng.normal(0, rng.uniform(1, 5), image.shape)

    labels = targets[scan_ids].astype(np.int64) + 1
    mask = np.concatenate([[0], labels]).astype(np.uint8)[instances]
    mask[rings] = VOID
    return Scene(
        image=np.clip(np.rint(image), 0, 255).astype(np.uint8),
        mask=mask,
        instances=instances,
        boxes=np.array([_tight_box(instances == k + 1) for k in range(len(labels))], np.int64),
        labels=labels,
        scan_ids=np.array(scan_ids, np.int64),
        truncated=np.array(truncated, bool),
    )
