"""Is a map of a real image the same from either half of its pixels?

    python experiments/phase_map/halves.py IMAGE --pixel-A 0.1 [--set phases=1 ...]

Each half has every other pixel, as the colours of a chess board, and the mean of their neighbours
for the rest: what the two share is the crystal, and not the noise. Nothing is written.
"""

import argparse
import ast

import jax
import numpy as np
import scipy.ndimage

import micjax
from micjax.physics.patches.unmixing.agreement import adjusted_rand_index
from micjax.problems import phase_map

NEIGHBOURS = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]) / 4.0


def halves(image: np.ndarray) -> list[np.ndarray]:
    first = np.indices(image.shape).sum(axis=0) % 2 == 0
    filled = [scipy.ndimage.convolve(np.where(k, image, 0.0), NEIGHBOURS) for k in (first, ~first)]
    return [np.where(k, image, f) for k, f in zip((first, ~first), filled, strict=True)]


def labels(image: np.ndarray, pixel_A: float, seed: int, **options) -> np.ndarray:
    """A number for each phase and angle."""
    options, x, y = phase_map.prepare(image, pixel_A, **options)
    problem = phase_map.problem(**options)
    solution = micjax.solve(phase_map, problem, x, y, key=jax.random.key(seed), steps=1)
    for row in solution.table:
        print(f"  phase {row['phase']}: {row['area (%)']:.0f} %, {row['grains']} grains at "
              f"{row['orientation of the largest (deg)']} deg")  # fmt: skip
    phase, angle = (solution.results[n].data for n in ("phase", "orientation"))
    both = np.nan_to_num(phase, nan=-1.0) + 1j * np.nan_to_num(angle, nan=-999.0)
    return np.unique(both, return_inverse=True)[1].reshape(phase.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("--pixel-A", type=float, required=True)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    asked = parser.parse_args()
    options = {n: ast.literal_eval(v) for n, v in (item.split("=") for item in asked.set)}
    image = np.asarray(micjax.io.read(asked.image).data, float)
    maps = []
    for seed, half in enumerate(halves(image)):
        print(f"half {seed}")
        maps.append(labels(half, asked.pixel_A, seed, **options))
    print(f"adjusted Rand index of the two: {adjusted_rand_index(*maps):.4f}")


if __name__ == "__main__":
    main()
