"""The network goes on learning, from a few images on which somebody has drawn boxes or labels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from micjax.nets.train import Training
from micjax.problems.particles.instances.decoder import targets
from micjax.problems.particles.network import loss, seen
from micjax.problems.particles.segmentation import back, resized, scales_for
from micjax.problems.particles.simulated import micrographs

WINDOW_PX, CROP_PX, MOST_WINDOWS = 192, 128, 12  # of the last: of an image at a scale
UNSURE = (0.9, 1.1)  # of the ellipse in a box: what lies between is not learned from
WINDOWS = 600  # that are drawn from in the end
MOST = 400  # instances of a window


def labels_in_boxes(
    boxes: Float[np.ndarray, "n 4"], shape: tuple[int, int]
) -> Int[np.ndarray, "y x"]:
    """Ellipses within boxes (y0, x0, y1, x1), smaller ones on top; -1 where they may end."""
    labels = np.zeros(shape, int)
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    for i in np.argsort(-size.prod(axis=1)):
        low = np.maximum(np.floor(boxes[i, :2] - 0.1 * size[i]).astype(int), 0)
        high = np.ceil(boxes[i, 2:] + 0.1 * size[i]).astype(int)
        window = labels[low[0] : high[0], low[1] : high[1]]
        y, x = np.indices(window.shape)
        middle = 0.5 * (boxes[i, :2] + boxes[i, 2:]) - 0.5 - low
        radius = np.hypot(
            *(2 * (a - m) / s for a, m, s in zip((y, x), middle, size[i], strict=True))
        )
        window[(radius < UNSURE[1]) & (window == 0)] = -1
        window[radius < UNSURE[0]] = i + 1
    return labels


def from_labels(
    network: nnx.Module,
    images: Sequence[Float[np.ndarray, "y x"]],
    labels: Sequence[Int[np.ndarray, "y x"]],
    examples: int = 6,
    simulated: int = 2,
) -> Training:
    """Crops and their negatives at all zooms, turned and mirrored, beside simulated micrographs, so
    that what the network knows is not forgotten.

    **Arguments:**

    - `labels`: from 1 on; -1: not to be learned from.
    """
    shown, wanted, owner = [], [], []
    rng = np.random.default_rng(0)
    for number, (image, of) in enumerate(zip(images, labels, strict=True)):
        for scale in scales_for(image.shape):
            small = resized(np.asarray(image, float), scale)
            parts = _windows(rng, small, _asked(back(of, small.shape)))
            shown += [p for p, _ in parts]
            wanted += [q for _, q in parts]
            owner += len(parts) * [number]
    owner = np.array(owner)
    share = 1.0 / np.bincount(owner)[owner]  # each image as often as any other
    # always as many: other numbers would compile anew
    drawn = rng.choice(len(owner), WINDOWS, p=share / share.sum())
    data = tuple(
        jnp.asarray(np.array(parts)[drawn], kind)
        for parts, kind in ((shown, jnp.float32), (wanted, jnp.int32))
    )
    room = WINDOW_PX - CROP_PX + 1

    def draw(key, data):
        shown, wanted = data
        of_place, of_scene, of_sign = jax.random.split(key, 3)
        u = jax.random.uniform(of_place, (examples, 8))
        which = (WINDOWS * u[:, 0]).astype(int)
        corner = (room * u[:, 1:3]).astype(int)

        def crop(which, corner, u):
            start = (which, corner[0], corner[1])
            cut = [
                jax.lax.dynamic_slice(a, start, (1, CROP_PX, CROP_PX))[0] for a in (shown, wanted)
            ]
            cut = [jnp.where(u[3] < 0.5, a.T, a) for a in cut]
            cut = [jnp.where(u[4] < 0.5, a[::-1], a) for a in cut]
            return [jnp.where(u[5] < 0.5, a[:, ::-1], a) for a in cut]

        image, label = jax.vmap(crop)(which, corner, u)
        made = jax.vmap(lambda k: micrographs.micrograph(k, CROP_PX))(
            jax.random.split(of_scene, simulated)
        )
        image = jnp.concatenate([image, made.image.astype(image.dtype)])
        sign = jnp.where(jax.random.bernoulli(of_sign, 0.5, (len(image), 1, 1)), 1.0, -1.0)
        label = jnp.concatenate([label, made.labels.astype(label.dtype)])
        return jax.vmap(seen)(sign * image), jax.vmap(lambda a: targets(a, MOST))(label)

    return Training(network, draw, loss, data)


def _asked(labels):
    """At this zoom: what is far too small or too large is background, as it is in simulations."""
    area = np.bincount(np.maximum(labels, 0).ravel(), minlength=1)
    diameter = np.sqrt(4.0 * area / np.pi)
    (low, high), (least, most) = micrographs.ASKED_PX, micrographs.SURELY_NOT_PX
    number = np.arange(len(area))
    number = np.where((diameter < low) | (diameter > high), -1, number)
    number = np.where((diameter < least) | (diameter > most), 0, number)
    number[0] = 0
    return np.where(labels < 0, -1, number[np.maximum(labels, 0)])


def _windows(rng, image, labels) -> list:
    """Some with most instances, and some by chance; the numbers of instances begin at one again."""
    wide = [(0, max(0, WINDOW_PX - n)) for n in image.shape]
    image, labels = np.pad(image, wide, "reflect"), np.pad(labels, wide, constant_values=-1)
    image = (image - image.mean()) / image.std()
    corners = rng.integers(0, np.array(image.shape) - WINDOW_PX + 1, (4 * MOST_WINDOWS, 2))
    cut = [np.s_[y : y + WINDOW_PX, x : x + WINDOW_PX] for y, x in corners]
    count = np.array([len(np.unique(labels[c])) for c in cut])
    order = np.argsort(-count, kind="stable")
    chosen = [*order[: MOST_WINDOWS * 3 // 4], *rng.choice(order, MOST_WINDOWS // 4, False)]
    parts = []
    for i in chosen:
        part = labels[cut[i]]
        values, index = np.unique(part, return_inverse=True)
        numbers = np.where(values > 0, np.cumsum(values > 0), values)
        parts.append((image[cut[i]], np.minimum(numbers[index].reshape(part.shape), MOST)))
    return parts
