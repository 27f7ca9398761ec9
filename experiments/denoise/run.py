"""A network that learns from the noise of the very image, on lattices that it was not trained on.

    python experiments/denoise/run.py [--seeds 100 ...] [--dose 3] [--steps 1000] [--with-truth]

Prints one JSON line an image: root mean square errors of the counts, of the best Gaussian filter by
the truth, of the network before it has seen the image and after, of the same network taught with
the truth of the image (`--with-truth`), and how often 90 % intervals hold.
"""

import argparse
import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from images import image

import micjax
from micjax.nets.train import Schedule, Training, best_network, courses
from micjax.problems import denoise
from micjax.problems.denoise.network import NoiseLaw, Pair, denoised, loss
from micjax.problems.denoise.stages import network_of
from micjax.problems.denoise.trust import WIDTHS_PX

TWO_SIDED_90 = 1.645


def rms(estimate, mean) -> float:
    return float(np.sqrt(np.mean((np.asarray(estimate) - mean) ** 2)))


def taught(network, mean: np.ndarray, steps: int, rate: float):
    """The same network, shown other counts of the same image and their true mean."""
    crops, edge = 4, 128

    def draw(key, truth):
        where, how = jax.random.split(key)
        corners = jax.random.randint(where, (crops, 2), 0, truth.shape[0] - edge + 1)
        part = jax.vmap(lambda c: jax.lax.dynamic_slice(truth, c, (edge, edge)))(corners)
        counts = jax.random.poisson(how, part).astype(part.dtype)
        law = NoiseLaw(jnp.ones(crops))
        return Pair(counts, part, law, law, jnp.ones(crops))

    training = Training(network, draw, loss, jnp.asarray(mean, jnp.float32))
    schedule = Schedule(steps=steps, learning_rate=rate)
    *_, last = courses(training, schedule, jax.random.key(0))
    return best_network(training, last)


def in_all_ways(apply, image: np.ndarray) -> np.ndarray:
    """The mean of what is made of the image mirrored and turned, as micjax takes it at its end."""
    total = 0.0
    for turns in range(4):
        for step in (1, -1):
            made = np.asarray(apply(jnp.asarray(np.rot90(image, turns)[::step].copy())))
            total = total + np.rot90(made[::step], -turns)
    return total / 8


def row(seed: int, dose: float, steps: int, rate: float, with_truth: bool) -> dict:
    counts, mean = image(seed, dose)
    problem = denoise.problem(*counts.shape, level=dose)
    x, y = jnp.arange(1), jnp.asarray(counts[None], jnp.float32)
    begun = time.monotonic()
    solution = micjax.solve(
        denoise, problem, x, y, key=jax.random.key(seed), steps=steps, learning_rate=rate
    )
    taken = time.monotonic() - begun
    field = solution.results["image"]
    off = np.abs(field.data - mean) <= TWO_SIDED_90 * field.metadata["errors"]
    told = {"seed": seed, "dose": dose, "steps": steps, "learning_rate": rate, "wall_s": taken}
    told |= {"counts": rms(counts, mean)}
    told |= {
        "gaussian": min(rms(scipy.ndimage.gaussian_filter(counts, w), mean) for w in WIDTHS_PX)
    }
    apply = jax.jit(lambda network, image: denoised(network, NoiseLaw(), image))
    told |= {"before": rms(apply(network_of(problem), y[0]), mean), "micjax": rms(field.data, mean)}
    if with_truth:
        network = taught(network_of(problem), mean, steps, rate)
        told |= {"with_truth_once": rms(apply(network, y[0]), mean)}
        told |= {"with_truth": rms(in_all_ways(partial(apply, network), counts), mean)}
    return told | {"intervals": float(off.mean()), "said": solution.statements[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(100, 106)))
    parser.add_argument("--dose", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--with-truth", action="store_true")
    asked = parser.parse_args()
    for seed in asked.seeds:
        told = row(seed, asked.dose, asked.steps, asked.rate, asked.with_truth)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
