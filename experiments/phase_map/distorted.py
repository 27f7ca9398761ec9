"""One phase in two orientations, one of them distorted: found when it is said that there is one?

    python experiments/phase_map/distorted.py --seeds 100 101 102
    python experiments/phase_map/distorted.py --percent 8 --seeds $(seq 100 119)

A lattice of `specimens` (random ones and prototypes in turn), two grains at angles of their own,
one of them stretched along an axis, as a scanner that drifts does it. Prints one JSON line an
image: the adjusted Rand index of grains and the share of it that is called no crystal.
"""

import argparse
import json
import sys

import jax
import numpy as np
import specimens

import micjax
from micjax.physics.patches.polycrystal import polycrystal
from micjax.physics.patches.unmixing.agreement import adjusted_rand_index
from micjax.problems import phase_map


def image_of(seed: int, percent: float):
    rng = np.random.default_rng([seed, 78])
    known = list(specimens.prototypes().values())
    lattice = specimens.random_lattice(rng) if seed % 2 else known[int(rng.integers(len(known)))]
    turn = rng.uniform(0.0, np.pi)
    axis = np.array([np.cos(turn), np.sin(turn)])
    stretched = np.eye(2) + 0.01 * percent * np.outer(axis, axis)
    other = lattice._replace(vectors_A=lattice.vectors_A @ stretched)
    return polycrystal(rng, [lattice, other], specimens.SHAPE, grains=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--percent", type=float, default=8.0, help="by which a grain is stretched")
    asked = parser.parse_args()
    rows = []
    for seed in asked.seeds:
        crystal = image_of(seed, asked.percent)
        try:
            options, x, y = phase_map.prepare(crystal.image, specimens.SAMPLING_A, phases=1)
        except ValueError as error:
            print(f"seed {seed}: {error}", file=sys.stderr)
            continue
        problem = phase_map.problem(**options)
        solution = micjax.solve(phase_map, problem, x, y, key=jax.random.key(seed), steps=1)
        angle = np.nan_to_num(solution.results["orientation"].data, nan=-999.0)
        grain = np.unique(angle, return_inverse=True)[1].reshape(angle.shape)
        row = {
            "seed": seed,
            "grains_index": round(adjusted_rand_index(grain, crystal.grain), 4),
            "no_crystal": round(solution.metrics["no_crystal_fraction"], 4),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    for name in ("grains_index", "no_crystal"):
        values = [row[name] for row in rows]
        print(f"{name}: {np.mean(values):.3f}, {np.min(values):.3f} to {np.max(values):.3f}")


if __name__ == "__main__":
    main()
