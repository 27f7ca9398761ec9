"""Outside of what the network learned from: other tips, blunter ones, doubles, other surfaces.

    python experiments/tip_removal_net/folds.py [--key 100] [--net FILE]

Prints one JSON line a fold of 48 made-up scans: PSNR (dB, not aligned, median over images) of the
scan, of erosion by the true tip and of the network; how often its 90 % intervals hold; how many
pixels of it lie above the bound, and which part of the truth does. The network is told the tip.
"""

import argparse
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from micjax.physics.tips.dilation import dilate
from micjax.problems.tip.fill import network_of
from micjax.problems.tip.network import estimated, sight
from micjax.problems.tip.scenes import SIZE, heights, shapes, surface

IMAGES, EDGE_PX = 48, 64
PLACE = jnp.arange(SIZE) - SIZE // 2


def as_trained(shape, u):
    return heights(shape)


def pyramid(shape, u):
    """Four faces, as no tip of the training has them."""
    y, x = PLACE[:, None], PLACE[None, :]
    turn = jnp.pi * u[0]
    a, b = jnp.cos(turn) * x + jnp.sin(turn) * y, jnp.cos(turn) * y - jnp.sin(turn) * x
    depth = shape.depth * jnp.maximum(jnp.abs(a), jnp.abs(b)) / (SIZE // 2)
    return depth.min() - depth


def gaussian(shape, u):
    """The hackathon's: flat far from the apex."""
    squared = PLACE[:, None] ** 2 + PLACE[None, :] ** 2
    width = 2.0 + 4.0 * u[0]
    return shape.depth * jnp.expm1(-squared / (2 * width**2))


def blunt(shape, u):
    return heights(shape._replace(depth=0.03 * 10.0 ** u[0]))


def double(shape, u):
    return heights(shape._replace(drop=0.3 * u[0]))


def triple(shape, u):
    """A third apex, which no tip of the training has."""
    third = shape._replace(offset=jnp.roll(-shape.offset, 1), drop=0.3 * u[1])
    return jnp.maximum(double(shape, u), heights(third))


def walls(key):
    """A surface of vertical walls: rectangles of many heights, none of which the training has."""
    u = jax.random.uniform(key, (30, 5))
    y, x = jnp.arange(EDGE_PX)[:, None], jnp.arange(EDGE_PX)[None, :]
    low, high = EDGE_PX * u[:, :2] - 4.0, EDGE_PX * u[:, :2] + 4.0 + 12.0 * u[:, 2:4]
    rows = (y[None] > low[:, 0, None, None]) & (y[None] < high[:, 0, None, None])
    columns = (x[None] > low[:, 1, None, None]) & (x[None] < high[:, 1, None, None])
    z = jnp.where(rows & columns, u[:, 4, None, None], 0.0).max(axis=0)
    return (z - z.mean()) / z.std()


def made_up(key):
    return surface(key, EDGE_PX)


FOLDS = {
    "as in the training": (made_up, as_trained),
    "pyramids": (made_up, pyramid),
    "Gaussian tips": (made_up, gaussian),
    "up to ten times blunter than any": (made_up, blunt),
    "double tips": (made_up, double),
    "triple tips": (made_up, triple),
    "walls, as no surface": (walls, as_trained),
}


def psnr(estimate, truth):
    squares = np.mean((np.asarray(estimate) - truth) ** 2, axis=(1, 2))
    return 10 * np.log10(np.ptp(truth, axis=(1, 2)) ** 2 / squares)


def fold(name: str, network, key) -> dict:
    of_surface, of_tip = FOLDS[name]

    def example(key):
        keys = jax.random.split(key, 4)
        truth, u = of_surface(keys[0]), jax.random.uniform(keys[2], (3,))
        shape, _ = shapes(keys[1])
        tip = of_tip(shape, u)
        sigma = 0.003 * 10.0 ** u[2]
        image = dilate(truth, tip) + sigma * jax.random.normal(keys[3], truth.shape)
        return truth, sight(image, tip, sigma)

    draw = jax.jit(lambda k: jax.lax.map(example, jax.random.split(k, IMAGES)))
    truth, sights = draw(key)
    run = jax.jit(partial(estimated, passes=network.facts.get("passes", 1)))
    estimate = run(network.network, sights)
    true = np.asarray(truth)
    half = network.facts["factor"] * np.asarray(estimate.scale)
    return {
        "fold": name,
        "scan": round(float(np.median(psnr(sights.image, true))), 2),
        "erosion": round(float(np.median(psnr(sights.upper, true))), 2),
        "network": round(float(np.median(psnr(estimate.surface, true))), 2),
        "worse than erosion": int((psnr(estimate.surface, true) < psnr(sights.upper, true)).sum()),
        "inside": round(float(np.mean(np.abs(true - estimate.surface) <= half)), 3),
        "above the bound": int((estimate.surface > estimate.bound).sum()),
        "truth above the bound": round(float(np.mean(true > np.asarray(estimate.bound))), 6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--key", type=int, default=100)
    parser.add_argument("--net", help="weights other than those of micjax")
    parser.add_argument("--folds", nargs="+", choices=list(FOLDS), default=list(FOLDS))
    given = parser.parse_args()
    network = network_of(given.net)
    for i, name in enumerate(FOLDS):
        if name not in given.folds:
            continue
        key = jax.random.fold_in(jax.random.key(given.key), i)
        print(json.dumps(fold(name, network, key)), flush=True)


if __name__ == "__main__":
    main()
