"""Images with their truth that the network was not trained on, and what they are judged by."""

import pathlib

import jax
import numpy as np
import scipy.ndimage
import scipy.optimize

from micjax.problems.particles.simulated.domes import film
from micjax.problems.particles.simulated.micrographs import micrograph

DATA = pathlib.Path("../shared/data/particles")
NAMES = ("Cu1", "Cu4", "Cu_silica1", "Pd1", "Pd_alumina1", "Pt4", "PtC1", "PtCo", "PtCo3", "PtW1")
NAMES += ("Ru1", "Ru3")
LOOKED_AT = ("Cu1", "Pd1", "PtCo3", "PtC1")  # while the simulator was written


def material(name: str) -> str:
    return name.rstrip("0123456789")


def made_up(seed: int, size: int = 256):
    """As those of the training, but no negatives of them: micrographs and a film."""
    keys = jax.random.split(jax.random.key(seed), 4)
    drawn = [_micrograph(k, size) for k in keys[:3]] + [_film(keys[3], size)]
    for image, labels in drawn:
        asked = np.maximum(np.asarray(labels).ravel(), 0)
        labels = np.unique(np.append(asked, 0), return_inverse=True)[1][:-1]
        yield np.asarray(image), labels.reshape(size, size)


_micrograph = jax.jit(micrograph, static_argnums=1)
_film = jax.jit(film, static_argnums=1)


def true_polarity(image, boxes) -> str:
    """Of what lies in the boxes, against what lies around them."""
    signs = []
    for y0, x0, y1, x1 in boxes:
        low, size = np.array([y0, x0]), np.array([y1 - y0, x1 - x0])
        inner = np.s_[
            int(low[0] + size[0] / 4) : int(low[0] + 3 * size[0] / 4) + 1,
            int(low[1] + size[1] / 4) : int(low[1] + 3 * size[1] / 4) + 1,
        ]
        outer = np.s_[
            max(int(low[0] - size[0] / 3), 0) : int(low[0] + 4 * size[0] / 3) + 1,
            max(int(low[1] - size[1] / 3), 0) : int(low[1] + 4 * size[1] / 3) + 1,
        ]
        signs.append(np.sign(image[inner].mean() - image[outer].mean()))
    return "bright" if np.mean(signs) > 0 else "dark"


def overlap(seed: int, n: int = 256, particles: int = 28, dose: float = 40.0):
    """Dark superellipses that overlap by up to three tenths, and differ by three in contrast."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:n, :n]
    thickness, labels, number = np.zeros((n, n)), np.zeros((n, n), int), 0
    tries = 0
    while number < particles and tries < 4000:
        tries += 1
        cy, cx = rng.uniform(14, n - 14, 2)
        a, b, turn, power = (
            rng.uniform(8, 20),
            rng.uniform(7, 14),
            rng.uniform(0, np.pi),
            2 ** rng.uniform(1, 2.3),
        )
        u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        v = -(x - cx) * np.sin(turn) + (y - cy) * np.cos(turn)
        q = (np.abs(u) / a) ** power + (np.abs(v) / b) ** power
        inside = q < 1
        if (labels[inside] > 0).mean() > 0.3:
            continue
        number += 1
        labels[inside & (labels == 0)] = number
        contrast = rng.uniform(0.5, 1.5)
        thickness += np.where(inside, contrast * (0.6 * np.sqrt(np.maximum(1 - q, 0)) + 0.4), 0)
    support = scipy.ndimage.gaussian_filter(rng.standard_normal((n, n)), 30) * 30
    carbon = scipy.ndimage.gaussian_filter(rng.standard_normal((n, n)), 1.5) * 4
    image = np.exp(-0.45 * scipy.ndimage.gaussian_filter(thickness, 0.8))
    image *= 1.0 + 0.08 * support + 0.03 * carbon
    image = rng.poisson(np.clip(image, 0, None) * dose) / dose
    return image, _whole(labels)


def _whole(labels):
    """Numbers without gaps; what is covered by others to fewer than 20 pixels is not asked for."""
    area = np.bincount(labels.ravel())
    kept = (area >= 20) & (np.arange(len(area)) > 0)
    return np.where(kept, np.cumsum(kept), 0)[labels]


def domes(seed: int, n: int = 256, grains: int = 110):
    """Domes of a Voronoi diagram under a parabolic tip, with a slope and noise of lines."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0, n, (grains, 2))
    y, x = np.mgrid[:n, :n]
    d = np.sqrt((y[..., None] - p[:, 0]) ** 2 + (x[..., None] - p[:, 1]) ** 2)
    d = d * rng.uniform(0.85, 1.15, grains)
    s = np.sort(d, -1)
    labels = d.argmin(-1) + 1
    height = np.tanh((s[..., 1] - s[..., 0]) / 8) * rng.uniform(0.6, 1.2, grains)[labels - 1]
    tip = -0.004 * (np.mgrid[-5:6, -5:6] ** 2).sum(0)
    height = scipy.ndimage.grey_dilation(height, structure=tip)
    height = height + 0.002 * x + 0.05 * rng.standard_normal((n, n))
    return height + 0.03 * rng.standard_normal((n, 1)), labels


def matched(labels, truth, least: float = 0.5):
    """Pairs (truth, estimate) of which the intersection over the union is more than `least`, and
    that quotient."""
    a, b = labels.max(), truth.max()
    both = np.zeros((b + 1, a + 1))
    np.add.at(both, (truth.ravel(), labels.ravel()), 1)
    part = both[1:, 1:]
    union = both[1:].sum(1)[:, None] + both[:, 1:].sum(0)[None] - part
    ratio = part / np.maximum(union, 1)
    rows, columns = scipy.optimize.linear_sum_assignment(-ratio)
    kept = ratio[rows, columns] > least
    return rows[kept] + 1, columns[kept] + 1, ratio[rows, columns][kept]


def ap50(labels, truth) -> float:
    hits = len(matched(labels, truth)[0])
    return hits / max(labels.max() + truth.max() - hits, 1)


def real(name: str, folder: pathlib.Path = DATA):
    """An image and the boxes drawn by hand on it: (y0, x0, y1, x1) in pixels."""
    from PIL import Image

    image = np.asarray(Image.open(folder / f"{name}.jpg").convert("L"), float)
    rows = np.loadtxt(folder / f"{name}.txt", ndmin=2)[:, 1:]
    x, y, w, h = (rows * np.tile(image.shape[::-1], 2)).T
    return image, np.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], 1)


def boxes_of(labels):
    slices = scipy.ndimage.find_objects(labels)
    return np.array(
        [[s[0].start, s[1].start, s[0].stop, s[1].stop] for s in slices if s], float
    ).reshape(-1, 4)


def box_f1(boxes, truth, least: float = 0.5) -> tuple[float, int]:
    """F1 of boxes that are matched to those of the truth in pairs, and how many are right."""
    if not len(boxes):
        return 0.0, 0
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    part = np.prod(np.clip(high - low, 0, None), -1)
    size = [np.prod(b[:, 2:] - b[:, :2], -1) for b in (boxes, truth)]
    ratio = part / (size[0][:, None] + size[1][None] - part)
    rows, columns = scipy.optimize.linear_sum_assignment(-ratio)
    hits = int((ratio[rows, columns] >= least).sum())
    return 2 * hits / (len(boxes) + len(truth)), hits
