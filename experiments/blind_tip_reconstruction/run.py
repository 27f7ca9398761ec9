"""Differentiable blind tip reconstruction data of Matsunaga et al. 2023, by micjax.

    python experiments/blind_tip_reconstruction/run.py --data ../shared/reference/btr

Simulated high-speed AFM of a protein: 20 frames of 30 x 30 pixels of 1.5 nm, one tip (single or
double), Gaussian noise of 0 or 0.3 nm. Scored as in the paper: tip RMSD over tip pixels above
-8 nm, surface RMSD over image pixels above 1 nm, each at the best shift within 5 pixels. Prints one
JSON line a run.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import micjax
from micjax.physics.tips.dilation import dilate, erode
from micjax.physics.tips.evidence import noise_sigma_nm
from micjax.problems import tip as problem_tip
from micjax.problems.tip.stages import describe

FRAMES, PIXEL_NM, TIP_SIZE = 20, 1.5, 13


def load(data: pathlib.Path, case: str):
    """Surfaces, tip on an odd grid, images with their own noise; all in nm (the files are in A)."""
    surfaces, tip, images = (
        np.ascontiguousarray(np.load(data / f"{case}_{n}.npy")) / 10
        for n in ("surfs", "tip", "images")
    )
    # 14 x 14 pixels with the origin at index 6: one more row and column that touch nothing
    return surfaces[:FRAMES], np.pad(tip, ((1, 0), (1, 0)), constant_values=-1e3), images[:FRAMES]


def rmsd(estimate, truth, mask) -> float:
    """Root mean square over `mask` at the best shift of the estimate within 5 pixels."""
    return min(
        float(np.sqrt(np.mean((np.roll(estimate, (dy, dx), (0, 1)) - truth)[mask] ** 2)))
        for dy in range(-5, 6)
        for dx in range(-5, 6)
    )


def _framed(tip, size: int = 45):
    """The tip in the middle of a window that holds any of these."""
    sides = [((size - n) // 2, (size - n) // 2) for n in tip.shape]
    return np.pad(np.asarray(tip), sides, constant_values=-1e3)


def surface_rmsd(estimates, truths, images) -> float:
    trios = zip(estimates, truths, images, strict=True)
    return float(np.mean([rmsd(e, t, i > 1.0) for e, t, i in trios]))


def run(surfaces, tip, images, tip_steps: int, seed: int = 0) -> dict:
    began = time.monotonic()
    y = jnp.asarray(images)
    # without noise: what the pixels of the model may be wrong by
    sigma = max(float(noise_sigma_nm(y)), 0.03)
    problem = problem_tip.problem(*y.shape, PIXEL_NM, TIP_SIZE, sigma_nm=sigma)
    x = jnp.arange(len(y))
    solution = micjax.solve(
        problem_tip,
        problem,
        x,
        y,
        key=jax.random.key(seed),
        tip_steps=tip_steps,
        tip_radii=45,
        posterior="none",
    )
    found = solution.extra["found"]
    eroded = np.asarray(jax.vmap(lambda i: erode(i, found.heights_nm))(y))
    with_true = np.asarray(jax.vmap(lambda i: erode(i, jnp.asarray(tip)))(y))
    return {
        "tip_rmsd_nm": rmsd(_framed(found.heights_nm), _framed(tip), _framed(tip) > -8.0),
        "surface_rmsd_nm": surface_rmsd(solution.results["surface"].data, surfaces, images),
        "erosion_rmsd_nm": surface_rmsd(eroded, surfaces, images),
        "image_rmsd_nm": surface_rmsd(images, surfaces, images),
        "villarrubia_rmsd_nm": surface_rmsd(
            solution.results["classical_surface"].data, surfaces, images
        ),
        "true_tip_erosion_rmsd_nm": surface_rmsd(with_true, surfaces, images),
        "tip": describe(found),
        "misfit": found.misfit,
        "floor": found.floor,
        "sigma_nm": sigma,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of *_images.npy")
    parser.add_argument("--only", default="", help="single or double")
    parser.add_argument("--noise", default="", help="noise-free or sigma")
    arguments = parser.parse_args()
    for case in ("single", "double"):
        if arguments.only and case != arguments.only:
            continue
        surfaces, tip, noisy = load(arguments.data, case)
        clean = np.stack([np.asarray(dilate(jnp.asarray(s), jnp.asarray(tip))) for s in surfaces])
        print(
            json.dumps({"case": case, "rms(file - our dilation) nm": float((noisy - clean).std())})
        )
        for name, images in (("noise-free", clean), ("sigma 0.3 nm", noisy)):
            if not name.startswith(arguments.noise):
                continue
            for kind, steps in (("parametric", 0), ("free-form", 300)):
                row = {"case": case, "noise": name, "kind": kind}
                print(json.dumps(row | run(surfaces, tip, images, steps)), flush=True)


if __name__ == "__main__":
    main()
