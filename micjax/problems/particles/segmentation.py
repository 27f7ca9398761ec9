"""From an image to labels: by the network at several zooms, or by a function of the user's own."""

import importlib
import logging
import math
import pathlib
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
import scipy.ndimage
from flax import nnx
from jaxtyping import Float, Int

from micjax.core.foreign.modules import trusted_function
from micjax.core.tree import replace
from micjax.nets.tiles import tiled
from micjax.nets.train import weights_of
from micjax.problems.particles.instances.decoder import instances
from micjax.problems.particles.instances.table import neighbours
from micjax.problems.particles.network import FEWEST_PX, WINDOWS_PX, checked_network, seen

log = logging.getLogger("micjax")

SHIPPED = pathlib.Path(__file__).with_name("network.h5")  # of micjax train particles
POLARITIES = ("auto", "bright", "dark", "both")
TILE_PX, OVERLAP_PX = 512, 64
LEAST_PX, MOST_PX = 64, 2100  # of an edge, for another scale than one
SCALES = (0.25, 0.5, 1.0, 2.0)
TRUSTED_PX = (8.0, 60.0)  # diameters at which the network is at home, where another zoom has others
RIM_PX = 3  # around an instance, which it is brighter or darker than
SURE = 0.5  # the least score of an instance
LIKELY = 0.3  # the least probability of a pixel: the network is careful with what it hardly sees
HARDLY = 0.3  # the least score at a zoom, where others may agree
ALIKE = 0.5  # intersection over union
FILM = 0.8  # of the pixels belong to instances: there is no background
TINY = 1e-9
TURNED = np.array([1.0, 1.0, -1.0, -1.0], np.float32)  # heads of an image turned half around
FREE = 0.5  # of the area of an instance that nothing of a better score has
FAINT = 0.15  # of what most instances have against their rim: less is noise or a stored image's


class Segmentation(NamedTuple):
    """`n` instances; 0 in `labels`: none."""

    labels: Int[np.ndarray, "y x"]
    score: Float[np.ndarray, "n"]
    doubt: Float[np.ndarray, "n"]  # sum of p (1 - p) over its pixels
    zoom: Float[np.ndarray, "n"]  # at which it was seen
    step: Float[np.ndarray, "n"]  # its mean less that of its rim; below zero: dark


@lru_cache(maxsize=4)
def shipped(path: str | None) -> nnx.Module:
    return checked_network(path or SHIPPED).network


def trusted_labels(address: str) -> Callable:
    """A function image -> labels that a setting names.

    **Raises:** `ValueError` for a function from elsewhere than below the current folder, or none.
    """
    module = trusted_function(address)
    return getattr(importlib.import_module(module), address.partition(":")[2])


def only_of_the_network(labels: str | None, **settings) -> None:
    """**Raises:** `ValueError` for a setting, not None, beside a function that makes the labels."""
    for name, value in settings.items():
        if labels is not None and value is not None:
            raise ValueError(
                f"{name} = {value!r} is for the network only, which labels = {labels!r} replaces"
            )


def check_zoom(zoom: float, shape: tuple[int, int]) -> None:
    """**Raises:** `ValueError` for none of `SCALES`, or one at which an image is too small."""
    if zoom not in SCALES:
        raise ValueError(f"zoom = {zoom:g}: one of {', '.join(f'{s:g}' for s in SCALES)} is needed")
    fitting = [s for s in SCALES if math.ceil(s * min(shape)) >= FEWEST_PX]
    if zoom not in fitting:
        left, whole = (" x ".join(str(math.ceil(s * n)) for n in shape) for s in (zoom, 1))
        allowed = f"zooms from {fitting[0]:g} on fit" if fitting else "no zoom fits"
        raise ValueError(
            f"zoom = {zoom:g} makes {left} of {whole} pixels, and the network needs at least "
            f"{FEWEST_PX} x {FEWEST_PX}: {allowed}"
        )


def by_function(function: Callable, image: Float[np.ndarray, "y x"]) -> Segmentation:
    """What another program makes of the image; how sure it is of that nobody says.

    **Raises:** `ValueError` for what are no labels of it.
    """
    labels = np.asarray(function(image.copy()))  # it may write into what it is given
    if labels.shape != image.shape or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"labels of shape {labels.shape} and type {labels.dtype}: whole numbers from 0 on, of "
            f"shape {image.shape}, are needed"
        )
    numbered = np.unique(np.append(labels.ravel(), 0), return_inverse=True)[1][:-1]
    numbered = numbered.reshape(labels.shape)
    unknown = np.full(int(numbered.max()), np.nan)
    return Segmentation(numbered, unknown, unknown, unknown, against_rim(image, numbered))


def segmented(
    image: Float[np.ndarray, "y x"],
    network: nnx.Module,
    polarity: str = "auto",
    scale: float | None = None,
    least_score: float = SURE,
) -> Segmentation:
    """The instances of an image.

    It is looked at through several zooms, and at each of them only what is neither too small nor
    too large for the network is believed (scale normalisation for image pyramids, Singh and Davis
    2018). What is there is seen alike at neighbouring zooms, and what a zoom makes up is not: see
    `merged`.

    **Arguments:**

    - `polarity`: `bright` or `dark`: only what is so against its rim; `both`; `auto`: both, but
        what most are not counts as much less as there is less of it.
    - `scale`: pixels of the network for one of the image; None: each of `SCALES`, and at each the
        mean of what the network says of the image and of the image turned half around.
    - `least_score`: of instances.

    **Raises:** `ValueError` for an image that is too small at this scale.
    """
    scales = [scale] if scale is not None else scales_for(image.shape)
    least = least_score if len(scales) == 1 else min(HARDLY, least_score)
    looks = 2 if scale is None else 1
    parts = [_at_scale(image, network, s, least, _trusted(s, scales), looks) for s in scales]
    return merged(parts, least_score, polarity)


def scales_for(shape: tuple[int, int]) -> list[float]:
    """At which the image is neither too small nor too large."""
    return [
        s for s in SCALES if s == 1.0 or (s * min(shape) >= LEAST_PX and s * max(shape) <= MOST_PX)
    ]


def _trusted(scale: float, scales: list[float]) -> tuple[float, float]:
    """Diameters that are believed: others are seen better at another zoom, if there is one."""
    low, high = TRUSTED_PX
    return low if scale < max(scales) else 0.0, high if scale > min(scales) else np.inf


def _at_scale(image, network, scale, least_score, trusted, looks) -> Segmentation:
    small = resized(image, scale)
    heads = heads_of(network, small, looks)
    split = instances(heads, least_probability=LIKELY)
    chance = 1.0 / (1.0 + np.exp(-heads[..., 0]))
    area = np.bincount(split.labels.ravel(), minlength=len(split.score) + 1)[1:]
    doubt = np.bincount(
        split.labels.ravel(), (chance * (1 - chance)).ravel(), minlength=len(split.score) + 1
    )[1:]
    diameter = np.sqrt(4.0 * area / np.pi)
    kept = (split.score >= least_score) & (diameter >= trusted[0]) & (diameter <= trusted[1])
    labels = np.append(0, np.where(kept, np.cumsum(kept), 0))[split.labels]
    whole = Segmentation(
        back(labels, image.shape) if scale != 1.0 else labels,
        split.score[kept],
        doubt[kept] / scale**2,
        np.full(int(kept.sum()), scale),
        against_rim(small, labels),
    )
    return _numbered(whole)


def _numbered(split: Segmentation) -> Segmentation:
    """Without those that have no pixel."""
    there = np.bincount(split.labels.ravel(), minlength=len(split.score) + 1)[1:] > 0
    labels = np.append(0, np.where(there, np.cumsum(there), 0))[split.labels]
    return Segmentation(labels, *(field[there] for field in split[1:]))


def against_rim(
    image: Float[np.ndarray, "y x"], labels: Int[np.ndarray, "y x"]
) -> Float[np.ndarray, "n"]:
    """How much brighter instances are than their rim; where there is hardly any, because others lie
    all around, than the outermost of their own pixels."""
    n = int(labels.max())
    beside = scipy.ndimage.maximum_filter(labels, 2 * RIM_PX + 1)  # of several the last one
    rim = (labels == 0) & (beside > 0)
    border = (neighbours(labels) != labels[..., None]).any(-1) & (labels > 0)

    def mean(owner, where):
        count = np.bincount(owner[where], minlength=n + 1)[1:]
        total = np.bincount(owner[where], image[where], minlength=n + 1)[1:]
        return total / np.maximum(count, 1), count

    own, _ = mean(labels, labels > 0)
    outside, many = mean(beside, rim)
    edge, all_around = mean(labels, border)
    return own - np.where(4 * many > all_around, outside, edge)


def merged(parts: list[Segmentation], least_score: float, polarity: str = "both") -> Segmentation:
    """Of several zooms, by how far they agree.

        score = (s + a) w c,    a = sum over other zooms of (intersection over union) s'

    where s is the score at a zoom and s' that of the instance of another one that shares more than
    half of the union with it. The evidence for a zoom is the sum of s a there; w is that of its
    zoom over the largest, and c the same of the bright ones and the dark ones, unless there is no
    background that they could be bright against. What differs from its rim by less than a small
    part of what most evidence does is noise that the network, which sees contrast against that of
    the surroundings, cannot know for it. Of instances that share pixels that of the best score has
    them; what is left of another remains if it is more than half of it (non-maximum suppression).
    """
    owner = np.repeat(np.arange(len(parts)), [len(part.score) for part in parts])
    number = np.concatenate([np.arange(len(part.score)) for part in parts])
    score, doubt, zoom, step = (
        np.concatenate(fields) for fields in zip(*(p[1:] for p in parts), strict=True)
    )
    support = np.concatenate(
        [sum((agreement(p, q) for q in parts if q is not p), np.zeros(len(p.score))) for p in parts]
    )
    evidence = score * (support if support.any() else 1.0)
    at_zoom = np.bincount(owner, evidence, minlength=len(parts))
    score = (score + support) * (_share(at_zoom)[owner] if support.any() else 1.0)
    best = parts[int(at_zoom.argmax())]
    if polarity != "both" and (best.labels > 0).mean() < FILM:
        bright = (step > 0).astype(int)
        given = {"bright": np.array([0.0, 1.0]), "dark": np.array([1.0, 0.0])}
        of_kind = given.get(polarity, _share(np.bincount(bright, evidence, minlength=2)))[bright]
        typical = _middle(np.abs(step), evidence * of_kind)
        score = score * of_kind * (np.abs(step) >= FAINT * typical)
    windows = [scipy.ndimage.find_objects(part.labels) for part in parts]
    labels = np.zeros(parts[0].labels.shape, int)
    kept = []
    for i in np.argsort(-score, kind="stable"):
        if not score[i] >= max(least_score, TINY):
            break
        window = windows[owner[i]][number[i]]
        own = parts[owner[i]].labels[window] == number[i] + 1
        free = own & (labels[window] == 0)
        if free.sum() > FREE * own.sum():
            kept.append(i)
            labels[window][free] = len(kept)
    return Segmentation(labels, np.minimum(score[kept], 1.0), doubt[kept], zoom[kept], step[kept])


def _share(of: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    return of / max(of.max(), TINY)


def _middle(value: Float[np.ndarray, "n"], weight: Float[np.ndarray, "n"]) -> float:
    """The median of values that do not all count alike; of none 0."""
    order = np.argsort(value)
    below = np.cumsum(weight[order])
    return float(value[order][np.searchsorted(below, 0.5 * below[-1])]) if len(value) else 0.0


def agreement(part: Segmentation, other: Segmentation) -> Float[np.ndarray, "n"]:
    """Of each instance with the one of another segmentation that shares most with it: intersection
    over union, if that is more than a half, times the score of the other."""
    n, m = len(part.score), len(other.score)
    both = (part.labels > 0) & (other.labels > 0)
    code, shared = np.unique(
        (part.labels[both] - 1) * m + other.labels[both] - 1, return_counts=True
    )
    i, j = np.divmod(code, max(m, 1))
    area, area_of_other = (
        np.bincount(p.labels.ravel(), minlength=k + 1)[1:] for p, k in ((part, n), (other, m))
    )
    ratio = shared / (area[i] + area_of_other[j] - shared)
    told = np.zeros(n)
    np.maximum.at(told, i, np.where(ratio > ALIKE, ratio * other.score[j], 0.0))
    return told


def resized(image: Float[np.ndarray, "y x"], scale: float) -> Float[np.ndarray, "v u"]:
    """Whole blocks of pixels as one, or linear between pixels."""
    if scale == 1.0:
        return image
    if scale > 1.0:
        return scipy.ndimage.zoom(image, scale, order=1, mode="nearest", grid_mode=True)
    by = round(1.0 / scale)
    size = [-(-n // by) * by for n in image.shape]
    image = np.pad(image, [(0, s - n) for s, n in zip(size, image.shape, strict=True)], "edge")
    return image.reshape(size[0] // by, by, size[1] // by, by).mean(axis=(1, 3))


def back(labels: Int[np.ndarray, "y x"], shape) -> Int[np.ndarray, "v u"]:
    """Labels on the pixels of the image."""
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1)
        for n, m in zip(shape, labels.shape, strict=True)
    )
    return labels[np.ix_(rows, columns)]


def heads_of(
    network: nnx.Module, image: Float[np.ndarray, "y x"], looks: int = 1
) -> Float[np.ndarray, "y x 4"]:
    """**Arguments:**

    - `looks`: 2: the mean over the image and the image turned half around.
    """
    image = np.asarray(image, np.float32)
    image = (image - image.mean()) / (image.std() + 1e-30)
    function, weights = _compiled(network), weights_of(network)
    multiple = max(network.multiple, *WINDOWS_PX)
    first, *turned = (
        tiled(function, weights, shown[..., None], multiple, TILE_PX, OVERLAP_PX)
        for shown in (image, image[::-1, ::-1])[:looks]
    )
    return 0.5 * (first + TURNED * turned[0][::-1, ::-1]) if turned else first


@lru_cache(maxsize=4)
def _compiled(network: nnx.Module):
    return jax.jit(lambda weights, tile: replace(network, weights)(seen(tile[..., 0])[None])[0])
