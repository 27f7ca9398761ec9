"""Streaming full Bayes on a map of loop areas, beside a long NUTS run of the same model.

    python experiments/structured_mean/streaming.py [--seeds 0 1 2 3 4 5] [--data FILE]

50 points are added one by one to 10 random ones, each where the expected improvement over all
hyper-parameters is largest among 2,500 candidates. Then NUTS samples the model on the same 60
points. Prints one JSON line a seed.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np

import micjax
from micjax.active import gp, smc
from micjax.active.acquisition import best_allowed

DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "afm" / "BEPS_PTO_50x50.h5"


def loop_areas(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in the unit square and log10 of the loop area there, 3 x 3 mean, standardised."""
    with h5py.File(path) as file:
        d = file["Channel_000/generic/generic"][:]
        v = file["Channel_000/generic/Voltage"][:]
    area = 0.5 * np.abs(np.sum(v * np.roll(d, -1, -1) - np.roll(v, -1) * d, -1))
    image = np.pad(np.log10(area), 1, mode="edge")
    rows, columns = area.shape
    image = sum(image[i : i + rows, j : j + columns] for i in range(3) for j in range(3)) / 9.0
    axes = np.linspace(0.0, 1.0, rows), np.linspace(0.0, 1.0, columns)
    points = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=-1)
    return points, ((image - image.mean()) / image.std()).ravel()


@eqx.filter_jit
def predictions(values, problem, observed, y, points):
    """Mean and variance at the points by each draw of the hyper-parameters."""

    def one(v):
        return gp.posterior(gp.condition.__wrapped__(problem.at(v), observed, y), points)

    return jax.lax.map(one, values)


def reference(problem, observed, y, points, key, samples: int) -> tuple[np.ndarray, ...]:
    """Mean and standard deviation by NUTS, and its worst r_hat."""
    first, second = jax.random.split(key)
    starts = micjax.draw_starts(first, problem, 4)
    posterior = micjax.nuts(
        problem,
        observed,
        y,
        second,
        samples=samples,
        warmup=500,
        chains=4,
        starts=starts,
        max_tree_depth=7,
        progress=False,
    )
    every = max(1, 4 * samples // 1000)
    draws = {n: jnp.asarray(d[::every]) for n, d in posterior.flat().items()}
    means, variances = jax.device_get(predictions(draws, problem, observed, y, points))
    r_hat = max(float(np.max(r)) for r in posterior.r_hat().values())
    return means.mean(axis=0), np.sqrt(variances.mean(axis=0) + means.var(axis=0)), r_hat


def run(seed: int, points, y, particles: int, samples: int, steps: int = 50) -> dict:
    problem = gp.process([0.0, 0.0], [1.0, 1.0])
    chosen = list(np.random.default_rng(seed).choice(len(y), 10, replace=False))
    data = gp.buffered(points[chosen], y[chosen], capacity=64)
    key = jax.random.key(seed)
    cloud = smc.begin(problem, *data, points, key, particles=particles)
    free, wall, busy, drawn_anew = np.ones(len(y), bool), [], [], 0
    free[chosen] = False
    for step in range(steps):
        began, used = time.perf_counter(), time.process_time()
        mean, _ = smc.predict(cloud)
        score = smc.log_expected_improvement(cloud, mean[~free].max())
        i = int(best_allowed(score, free)[0])
        cloud = smc.tell(cloud, points[i], y[i], jax.random.fold_in(key, step))
        drawn_anew += cloud.effective > particles - 1e-6
        wall.append(time.perf_counter() - began)
        busy.append(time.process_time() - used)
        free[i] = False
    mean, variance = smc.predict(cloud)
    wanted, sd, r_hat = reference(problem, cloud.observed, cloud.y, points, key, samples)
    return {
        "seed": seed,
        "particles": particles,
        "seconds_median": round(float(np.median(wall[2:])), 3),
        "seconds_mean": round(float(np.mean(wall[2:])), 3),
        "cpu_seconds_median": round(float(np.median(busy[2:])), 3),
        "cpu_seconds_mean": round(float(np.mean(busy[2:])), 3),
        "drawn_anew": int(drawn_anew),
        "mean_difference_sd": round(float(np.sqrt(np.mean(((mean - wanted) / sd) ** 2))), 3),
        "sd_ratio_median": round(float(np.median(np.sqrt(variance) / sd)), 3),
        "nuts_r_hat": round(r_hat, 3),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--data", type=pathlib.Path, default=DATA)
    parser.add_argument("--particles", type=int, default=128)
    parser.add_argument("--samples", type=int, default=2000, help="of each of 4 NUTS chains")
    given = vars(parser.parse_args())
    jax.config.update("jax_enable_x64", True)
    points, y = loop_areas(given.pop("data"))
    for seed in given.pop("seeds"):
        print(json.dumps(run(seed, points, y, **given)), flush=True)


if __name__ == "__main__":
    main()
