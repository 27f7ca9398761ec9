"""Made-up images that no network was trained on, as .npz files for programs without micjax.

    python experiments/denoise/images.py --to FOLDER [--seeds 100 101 ...] [--dose 3]

Polycrystals of two random lattices (as in experiments/phase_map), every other one with a film that
has none. Each file holds the counts and the true mean of every pixel.
"""

import argparse
import pathlib
import sys

import numpy as np

from micjax.physics.patches.polycrystal import polycrystal

sys.path.append(str(pathlib.Path(__file__).parents[1] / "phase_map"))
from specimens import random_lattice  # noqa: E402

SIDE_PX = 256
EXACT = 1e9  # electrons a pixel: as good as no noise


def image(seed: int, electrons_per_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts and their true mean."""
    rng = np.random.default_rng([seed, 16])
    lattices = [random_lattice(rng) for _ in range(2)]
    film = 0.2 * (seed % 2)
    shape = (SIDE_PX, SIDE_PX)
    exact = polycrystal(rng, lattices, shape, grains=5, electrons_per_px=EXACT, amorphous=film)
    mean = electrons_per_px * exact.image / exact.image.mean()
    return rng.poisson(mean).astype(float), mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(100, 106)))
    parser.add_argument("--dose", type=float, default=3.0)
    asked = parser.parse_args()
    asked.to.mkdir(parents=True, exist_ok=True)
    for seed in asked.seeds:
        counts, mean = image(seed, asked.dose)
        np.savez_compressed(asked.to / f"{seed}_{asked.dose:g}.npz", counts=counts, mean=mean)


if __name__ == "__main__":
    main()
