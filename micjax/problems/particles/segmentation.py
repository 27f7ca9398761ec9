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
from micjax.nets.instances import HEADS, instances
from micjax.nets.tiles import tiled
from micjax.nets.train import weights_of
from micjax.problems.particles.network import WINDOWS_PX, checked_network, seen

log = logging.getLogger("micjax")

SHIPPED = pathlib.Path(__file__).with_name("network.h5")  # of micjax train particles
POLARITIES = ("auto", "bright", "dark")
TILE_PX, OVERLAP_PX = 512, 64
SMALL_PX, LARGE_PX = 10.0, 60.0  # diameters below and above which another scale is tried
SCALES = (0.25, 0.5, 1.0, 2.0)
SURE = 0.5  # the least score of an instance


class Segmentation(NamedTuple):
    labels: Int[np.ndarray, "y x"]  # 0: none
    score: Float[np.ndarray, "n"]
    doubt: Float[np.ndarray, "n"]  # sum of p (1 - p) over its pixels
    polarity: str
    scale: float


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
    return Segmentation(numbered, np.ones(n), np.zeros(n), "as given", 1.0)


def segmented(
    image: Float[np.ndarray, "y x"],
    network: nnx.Module,
    polarity: str = "auto",
    scale: float | None = None,
    least_score: float = SURE,
) -> Segmentation:
    """The instances of an image.

    **Arguments:**

    - `polarity`: `bright`, `dark`, or `auto`: of which more area is explained with more certainty.
    - `scale`: pixels of the network for one of the image; None: the network says whether it would
        rather have another than one.
    - `least_score`: of instances.
    """
    if polarity == "auto":
        both = [segmented(image, network, p, scale, least_score) for p in ("bright", "dark")]
        return max(both, key=_explained)
    here = 1.0 if scale is None else scale
    best = _at_scale(image, network, polarity, here, least_score)
    while scale is None and len(best.score):
        diameter = np.median(2.0 * np.sqrt(np.bincount(best.labels.ravel())[1:] / np.pi)) * here
        wanted = here * (2.0 if diameter < SMALL_PX else 0.5 if diameter > LARGE_PX else 1.0)
        if wanted == here or wanted not in SCALES or (here - 1.0) * (wanted - here) < 0:
            break
        best, here = _at_scale(image, network, polarity, wanted, least_score), wanted
    return best


def _explained(segmentation: Segmentation) -> float:
    return float(segmentation.score.sum())


def _at_scale(image, network, polarity, scale, least_score) -> Segmentation:
    seen_as = image if polarity == "bright" else -image
    heads = heads_of(network, resized(seen_as, scale))
    split = instances(heads)
    chance = 1.0 / (1.0 + np.exp(-heads[..., 0]))
    doubt = np.bincount(
        split.labels.ravel(), (chance * (1 - chance)).ravel(), minlength=len(split.score) + 1
    )[1:]
    kept = split.score >= least_score
    labels = np.append(0, np.where(kept, np.cumsum(kept), 0))[split.labels]
    if scale != 1.0:
        labels = back(labels, image.shape)
    area = np.bincount(labels.ravel(), minlength=int(kept.sum()) + 1)[1:]
    there = area > 0  # too small to have a pixel
    labels = np.append(0, np.where(there, np.cumsum(there), 0))[labels]
    return Segmentation(
        labels, split.score[kept][there], doubt[kept][there] / scale**2, polarity, scale
    )


def resized(image: Float[np.ndarray, "y x"], scale: float) -> Float[np.ndarray, "y x"]:
    """Whole blocks of pixels as one, or linear between pixels."""
    if scale == 1.0:
        return image
    if scale > 1.0:
        return scipy.ndimage.zoom(image, scale, order=1, mode="nearest", grid_mode=True)
    by = round(1.0 / scale)
    size = [-(-n // by) * by for n in image.shape]
    image = np.pad(image, [(0, s - n) for s, n in zip(size, image.shape, strict=True)], "edge")
    return image.reshape(size[0] // by, by, size[1] // by, by).mean(axis=(1, 3))


def back(labels: Int[np.ndarray, "y x"], shape) -> Int[np.ndarray, "y x"]:
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
