"""The posterior of a double tip from one scan of the hackathon's lattice, by a network.

python experiments/tip_psf/run.py bank --to FOLDER [--scans 6000]     simulated scans
python experiments/tip_psf/run.py train --to FOLDER [--steps 3000]    learns from them
python experiments/tip_psf/run.py test --of FOLDER [--seed 100]       one JSON line
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from forward import (
    NAMES,
    NOISE,
    drawn,
    every_other,
    from_normal,
    full_scan,
    lattice,
    normalised,
    tip,
    to_normal,
)

from micjax.nets.encoder import ImageEncoder
from micjax.nets.mixture import mixture_numbers, normal_mixture
from micjax.nets.train import Schedule, Training, train
from micjax.nets.trust.conformal import conformal_factor
from micjax.nets.weights import load_network, save_network

COMPONENTS, SIZE, HELD_OUT, EXAMPLES, DRAWS, LEVEL = 6, 6, 400, 32, 200, 0.9


OPTIONS = {
    "channels_in": 5,
    "numbers_out": mixture_numbers(COMPONENTS, SIZE),
    "width": 16,
    "depth": 3,
    "fold": 2,
}


def seen(scans):
    """The scan, finely and roughly, beside the bare lattice and where a pixel lies: at the edges
    of the scan one of the two apexes hangs over."""
    n = scans.shape[-1]
    place = jnp.linspace(-1.0, 1.0, n)
    bare = jnp.asarray(lattice()[::2, ::2] - 0.5, scans.dtype)
    level = scans.mean(axis=(-2, -1), keepdims=True)
    fine = jnp.arcsinh((scans - level) / 0.02) / 2.0
    still = [jnp.broadcast_to(a, scans.shape) for a in (2.0 * bare, place[:, None], place[None])]
    return jnp.stack([scans, fine, *still], axis=-1)


def law(net, scans):
    return normal_mixture(net(seen(scans)), COMPONENTS, SIZE)


def loss(net, batch):
    scans, z = batch
    return -law(net, scans).log_prob(z).mean()


def bank(folder: pathlib.Path, scans: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = drawn(jax.random.key(0), scans)
    surface = jnp.asarray(lattice(), jnp.float32)
    run = jax.jit(lambda n: jax.lax.map(lambda a: every_other(surface, tip(a)), n))
    parts, began = [], time.process_time()
    for start in range(0, scans, 100):
        parts.append(np.asarray(run(numbers[start : start + 100]), np.float32))
        print(start, time.process_time() - began, flush=True)
    np.savez(folder / "bank.npz", numbers=numbers, scans=np.concatenate(parts))


def training(folder: pathlib.Path) -> Training:
    with np.load(folder / "bank.npz") as file:
        numbers, scans = jnp.asarray(file["numbers"]), jnp.asarray(file["scans"])

    def drawing(low, high):
        def draw(key, data):
            numbers, scans = data
            which, of_noise, of_place = jax.random.split(key, 3)
            i = jax.random.randint(which, (EXAMPLES,), low, high)
            noise = NOISE * jax.random.normal(of_noise, (EXAMPLES, *scans.shape[1:]))
            return scans[i] + noise, to_normal(
                numbers[i], jax.random.uniform(of_place, (EXAMPLES, SIZE))
            )

        return draw

    learned = len(scans) - HELD_OUT
    return Training(
        ImageEncoder(**OPTIONS, rngs=nnx.Rngs(0)),
        drawing(0, learned),
        loss,
        (numbers, scans),
        drawing(learned, len(scans)),
        facts={"scans": learned, "noise": NOISE},
    )


def learn(folder: pathlib.Path, steps: int) -> None:
    of_bank = training(folder)
    result = train(
        of_bank,
        Schedule(steps=steps, chunk=100, learning_rate=2e-3, held_out=12),
        jax.random.key(0),
        checkpoint=folder / "training.h5",
        resume=True,
        on_chunk=lambda c: print(len(c.losses), c.losses[-100:].mean(), c.held_out[-1], flush=True),
    )

    save_network(folder / "network.h5", result.network, OPTIONS, of_bank.facts, "float16")


def contact_gap(surface, heights):
    """By how much each tip pixel misses the lattice where it comes nearest, 0: it touches."""
    n, k = surface.shape[0], heights.shape[0]
    padded = jnp.pad(surface, k // 2, constant_values=-1.0)
    image = full_scan(surface, heights) + 1.0

    def row(_, i):
        rows = jax.lax.dynamic_slice_in_dim(padded, i, n)

        def pixel(j):
            under = jax.lax.dynamic_slice_in_dim(rows, j, n, axis=1)
            return jnp.min(image - under - heights[i, j])

        return None, jax.lax.map(pixel, jnp.arange(k))

    return jax.lax.scan(row, None, jnp.arange(k))[1]


def coverage(draws, truth, factor=1.0):
    """How often the central 90 % of draws, stretched about their median, hold the truth."""
    low, middle, high = np.quantile(draws, (0.05, 0.5, 0.95), axis=0)
    below, above = middle - factor * (middle - low), middle + factor * (high - middle)
    return (truth >= below) & (truth <= above)


def stretched(draws, truth):
    """The score of split conformal prediction: how far the truth is out, in half widths."""
    low, middle, high = np.quantile(draws, (0.05, 0.5, 0.95), axis=0)
    half = np.where(truth < middle, middle - low, high - middle)
    return np.abs(truth - middle) / np.maximum(half, 1e-6)


def posterior_draws(net, scans, key):
    """`[draws, scans, 6]`, standard normal under the prior."""
    return law(net, scans).sample(key, (DRAWS,))


def test(folder: pathlib.Path, seed: int, tips: int) -> dict:
    net = load_network(folder / "network.h5").network
    of_bank = training(folder)
    numbers, scans = of_bank.data
    key, of_noise, of_draws, of_tips = jax.random.split(jax.random.key(seed), 4)
    surface = jnp.asarray(lattice(), jnp.float32)
    run = jax.jit(lambda n: jax.lax.map(lambda a: every_other(surface, tip(a)), n))
    true = drawn(of_tips, tips)
    y = run(true)
    y = y + NOISE * jax.random.normal(of_noise, y.shape)
    sample = jax.jit(posterior_draws)

    # calibrated on scans of the bank that were not learned from
    held = slice(-HELD_OUT, None)
    again = scans[held] + NOISE * jax.random.normal(key, scans[held].shape)
    spread = jax.random.uniform(key, (HELD_OUT, SIZE))
    score = stretched(
        np.asarray(sample(net, again, key)), np.asarray(to_normal(numbers[held], spread))
    )
    factors = np.array([conformal_factor(score[:, i].astype(float), LEVEL) for i in range(SIZE)])

    draws = sample(net, y, of_draws)
    z = np.asarray(to_normal(true, jax.random.uniform(of_draws, true.shape)))
    inside = coverage(np.asarray(draws), z, factors).mean(axis=0)
    raw = coverage(np.asarray(draws), z).mean(axis=0)
    shape = jax.jit(jax.vmap(lambda n: normalised(tip(n))))
    mean_tip = jax.jit(lambda z: jax.lax.map(lambda a: shape(from_normal(a)).mean(0), z))
    posterior = np.asarray(mean_tip(jnp.swapaxes(draws, 0, 1)))
    shapes = np.asarray(shape(true))
    prior = np.asarray(shape(drawn(jax.random.key(1), 2000)).mean(axis=0))

    gap = jax.jit(lambda n: jax.lax.map(lambda a: contact_gap(surface, tip(a)), n))
    few = slice(0, min(12, tips))
    never = np.asarray(gap(true[few])) > 1e-6
    drawn_tips = from_normal(jnp.swapaxes(draws, 0, 1)[few, :4]).reshape(-1, SIZE)
    touching = (np.asarray(gap(drawn_tips)) <= 1e-6).reshape(-1, 4, *shapes.shape[1:]).mean(axis=1)
    open_ = touching < 0.5
    squares = ((posterior - shapes) ** 2).mean(axis=(1, 2))
    return {
        "seed": seed,
        "tips": tips,
        "mse": float(squares.mean()),
        "mse_median": float(np.median(squares)),
        "mse_of_the_mean_tip": float(((prior - shapes) ** 2).mean()),
        "inside": dict(zip(NAMES, np.round(inside, 3).tolist(), strict=True)),
        "inside_before_calibration": dict(zip(NAMES, np.round(raw, 3).tolist(), strict=True)),
        "not_identified_of_never_touched": float(open_[never].mean()),
        "not_identified_of_touched": float(open_[~never].mean()),
        "touched_share": float((~never).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    does = parser.add_subparsers(dest="does", required=True)
    of_bank, of_training, of_test = (does.add_parser(n) for n in ("bank", "train", "test"))
    for part in (of_bank, of_training):
        part.add_argument("--to", type=pathlib.Path, required=True)
    of_bank.add_argument("--scans", type=int, default=6000)
    of_training.add_argument("--steps", type=int, default=3000)
    of_test.add_argument("--of", type=pathlib.Path, required=True)
    of_test.add_argument("--seed", type=int, default=100)
    of_test.add_argument("--tips", type=int, default=200)
    given = parser.parse_args()
    if given.does == "bank":
        bank(given.to, given.scans)
    elif given.does == "train":
        learn(given.to, given.steps)
    else:
        print(json.dumps(test(given.of, given.seed, given.tips)))


if __name__ == "__main__":
    main()
