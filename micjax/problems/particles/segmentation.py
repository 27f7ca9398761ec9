"""From an image to labels: by the network, at a scale and a polarity that it is at home in, or by a
function of the user's own."""

import importlib
import logging
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
from micjax.problems.particles.network import WINDOWS_PX, checked_network, seen

log = logging.getLogger("micjax")

SHIPPED = pathlib.Path(__file__).with_name("network.h5")  # of micjax train particles
POLARITIES = ("auto", "bright", "dark")
TILE_PX, OVERLAP_PX = 512, 64
LEAST_PX, MOST_PX = 64, 2100  # of an edge, for another scale than one
NEARLY = 0.55  # as good as the best
SCALES = (0.25, 0.5, 1.0, 2.0)
SURE = 0.4  # the least score of an instance
LIKELY = 0.3  # the least probability of a pixel: the network is careful with what it hardly sees


class Segmentation(NamedTuple):
    labels: Int[np.ndarray, "y x"]  # 0: none
    score: Float[np.ndarray, "n"]
    doubt: Float[np.ndarray, "n"]  # sum of p (1 - p) over its pixels
    polarity: str
    scale: float
    certainty: float  # mean score of all that might be instances


@lru_cache(maxsize=4)
def shipped(path: str | None) -> nnx.Module:
    return checked_network(path or SHIPPED).network


def trusted_labels(address: str) -> Callable:
    """A function image -> labels that a setting names.

    **Raises:** `ValueError` for a function from elsewhere than below the current folder, or none.
    """
    module = trusted_function(address)
    return getattr(importlib.import_module(module), address.partition(":")[2])


def by_function(function: Callable, image: Float[np.ndarray, "y x"]) -> Segmentation:
    """What another program makes of the image.

    **Raises:** `ValueError` for what are no labels of it.
    """
    labels = np.asarray(function(image))
    if labels.shape != image.shape or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"labels of shape {labels.shape} and type {labels.dtype}: whole numbers from 0 on, of "
            f"shape {image.shape}, are needed"
        )
    numbered = np.unique(np.append(labels.ravel(), 0), return_inverse=True)[1][:-1]
    numbered = numbered.reshape(labels.shape)
    n = int(numbered.max())
    return Segmentation(numbered, np.ones(n), np.zeros(n), "as given", 1.0, 1.0)


def segmented(
    image: Float[np.ndarray, "y x"],
    network: nnx.Module,
    polarity: str = "auto",
    scale: float | None = None,
    least_score: float = SURE,
) -> Segmentation:
    """The instances of an image.

    What is an instance in the negative of an image is false, and about as many are in the image
    itself. Scale and polarity are those of which most instances are left when so many are taken
    off (target and decoy, Elias and Gygi 2007), times the square of the mean score of all that
    might be one; of scales that are nearly as good the finest, where outlines are best.

    **Arguments:**

    - `polarity`: `bright`, `dark`, or `auto`.
    - `scale`: pixels of the network for one of the image; None: one of `SCALES`.
    - `least_score`: of instances.

    **Raises:** `ValueError` for an image that is too small at this scale.
    """
    scales = [scale] if scale is not None else _scales_for(image.shape)
    if len(scales) == 1 and polarity != "auto":
        return _at_scale(image, network, polarity, scales[0], least_score)
    worth = []
    for scale in scales:
        both = [_at_scale(image, network, p, scale, least_score) for p in ("bright", "dark")]
        for split, decoy in (both, both[::-1]):
            if polarity in ("auto", split.polarity):
                left = float(split.score.sum() - decoy.score.sum())
                worth.append((left * split.certainty**2, split))
    most = max(value for value, _ in worth)
    of_it = next(s.polarity for value, s in worth if value == most)
    fit = [s for value, s in worth if s.polarity == of_it and value >= NEARLY * most]
    return max(fit, key=lambda s: s.scale, default=worth[-1][1])


def _scales_for(shape: tuple[int, int]) -> list[float]:
    """At which the image is neither too small nor too large."""
    return [
        s for s in SCALES if s == 1.0 or (s * min(shape) >= LEAST_PX and s * max(shape) <= MOST_PX)
    ]


def _at_scale(image, network, polarity, scale, least_score) -> Segmentation:
    seen_as = image if polarity == "bright" else -image
    heads = heads_of(network, resized(seen_as, scale))
    split = instances(heads, least_probability=LIKELY)
    chance = 1.0 / (1.0 + np.exp(-heads[..., 0]))
    doubt = np.bincount(
        split.labels.ravel(), (chance * (1 - chance)).ravel(), minlength=len(split.score) + 1
    )[1:]
    certainty = float(split.score.mean()) if len(split.score) else 0.0
    kept = split.score >= least_score
    labels = np.append(0, np.where(kept, np.cumsum(kept), 0))[split.labels]
    if scale != 1.0:
        labels = back(labels, image.shape)
    area = np.bincount(labels.ravel(), minlength=int(kept.sum()) + 1)[1:]
    there = area > 0  # too small to have a pixel
    labels = np.append(0, np.where(there, np.cumsum(there), 0))[labels]
    return Segmentation(
        labels, split.score[kept][there], doubt[kept][there] / scale**2, polarity, scale, certainty
    )


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


def heads_of(network: nnx.Module, image: Float[np.ndarray, "y x"]) -> Float[np.ndarray, "y x 4"]:
    image = np.asarray(image, np.float32)
    image = (image - image.mean()) / (image.std() + 1e-30)
    function = _compiled(network)
    multiple = max(network.multiple, *WINDOWS_PX)
    return tiled(function, weights_of(network), image[..., None], multiple, TILE_PX, OVERLAP_PX)


@lru_cache(maxsize=4)
def _compiled(network: nnx.Module):
    return jax.jit(lambda weights, tile: replace(network, weights)(seen(tile[..., 0])[None])[0])
