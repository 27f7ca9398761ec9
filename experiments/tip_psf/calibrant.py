"""Which calibrant to scan, so that one scan tells the tip: designed by the planner, then used.

    python experiments/tip_psf/calibrant.py [--seed 100] [--tips 50]

A calibrant has sharp spikes of one height on a square grid of one pitch; both are what is planned.
Tips are those of the hackathon, but the second apex may lie anywhere within 29 px either way.
Prints the plan, then the error of the tips as in `run.py`, one JSON line.
"""

import argparse
import json
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from forward import EDGE_PX, FURTHEST, NOISE, TIP_PX, WIDEST, normalised
from jaxtyping import Array, Float

import micjax
from micjax import Gaussian, InverseProblem, parameter
from micjax.active.acquire.search import Box
from micjax.active.design.particles import start
from micjax.active.design.plan import gains, plan
from micjax.inference.solvers.first_order import Adam
from micjax.problems.tip_characteriser.stages import screened_starts

SPIKES = 5  # along each side of the grid; those outside the scan are not there
THIN = 4  # every fourth pixel of every fourth line is measured
SOLVER = Adam(0.05)
SPACE = Box([0.3, 24.0], [2.5, 120.0])  # height (of the first apex), pitch (px)


class SpikeScan(eqx.Module):
    """Scans of grids of spikes; `x` has their heights and pitches."""

    widths_px: Float[Array, "4"] = parameter()  # x and y of the first apex, of the second
    amp2: Float[Array, ""] = parameter()
    offset_px: Float[Array, "2"] = parameter()  # y, x

    def heights(self, y, x):
        wx1, wy1, wx2, wy2 = self.widths_px
        second_y, second_x = y - self.offset_px[0], x - self.offset_px[1]
        first = jnp.exp(-(x**2) / (2 * wx1**2) - y**2 / (2 * wy1**2))
        second = jnp.exp(-(second_x**2) / (2 * wx2**2) - second_y**2 / (2 * wy2**2))
        return first + self.amp2 * second

    def image(self, height, pitch_px):
        """max(ground + highest point of the tip, spikes + tip) - 1."""
        pixel = jnp.arange(0.0, EDGE_PX, THIN)
        spike = EDGE_PX / 2 + pitch_px * (jnp.arange(SPIKES) - SPIKES // 2)
        away = spike[None, :] - pixel[:, None]
        near = (jnp.abs(away) < TIP_PX / 2) & (spike >= 0) & (spike < EDGE_PX)
        touching = near[:, None, :, None] & near[None, :, None, :]
        raised = height + self.heights(away[:, None, :, None], away[None, :, None, :])
        zero = jnp.zeros(())
        top = jnp.maximum(self.heights(zero, zero), self.heights(*self.offset_px))
        spikes = jnp.where(touching, raised, -jnp.inf).max(axis=(2, 3))
        return jnp.maximum(spikes, top) - 1.0

    def __call__(self, x: Float[Array, "n 2"]) -> Float[Array, "n y x"]:
        return jax.vmap(lambda s: self.image(*s))(x)

    def tip(self) -> Float[Array, "k k"]:
        place = jnp.arange(TIP_PX) - TIP_PX / 2
        return self.heights(place[:, None], place[None, :])


def problem() -> InverseProblem:
    return InverseProblem(
        SpikeScan(np.full(4, 8.0), 0.5, np.array([8.0, 8.0])),
        Gaussian(NOISE),
        {
            "forward.widths_px": dist.Uniform(1.0, WIDEST + 1.0).expand([4]),
            "forward.amp2": dist.Uniform(0.0, 1.0),
            "forward.offset_px": dist.Uniform(-FURTHEST - 1.0, FURTHEST + 1.0).expand([2]),
        },
    )


def planned(key) -> dict:
    """The calibrant from which the tip's numbers can be learnt best, and others beside it."""
    blank = problem()
    particles = start(key, blank, jnp.asarray([[1.0, 60.0]]), count=256)
    design = plan(key, blank, particles, SPACE, draws=24, samples=48, starts=2, steps=6)
    others = jnp.asarray([[0.5, 24.0], [1.0, 24.0], [1.0, 60.0], [1.0, 120.0], [2.5, 24.0]])
    nats = gains(key, blank, particles, others, draws=24)
    return {
        "height": float(design.x[0, 0]),
        "pitch_px": float(design.x[0, 1]),
        "nats": design.gain,
        "others": {
            f"{h:g}, {p:g} px": round(float(n), 1) for (h, p), n in zip(others, nats, strict=True)
        },
    }


def tips_found(key, design: tuple[float, float], tips: int) -> dict:
    """Errors of tips that are drawn from the priors, scanned over the calibrant and fitted."""
    blank, x = problem(), jnp.asarray([design])
    errors, residuals, seconds = [], [], []
    for k in jax.random.split(key, tips):
        of_values, of_noise, of_fit = jax.random.split(k, 3)
        names = jax.random.split(of_values, len(blank.priors))
        values = {n: p.sample(i) for i, (n, p) in zip(names, blank.priors.items(), strict=True)}
        true = blank.at(values)
        y = true.noise(true.forward(x)).sample(of_noise)
        began = time.process_time()
        starts = screened_starts(of_fit, blank, x, y, 512, 12)
        best = micjax.fit(blank, x, y, SOLVER, steps=500, chunk=500, starts=starts).problem
        seconds.append(time.process_time() - began)
        off = normalised(best.forward.tip()) - normalised(true.forward.tip())
        errors.append(float(jnp.mean(off**2)))
        residuals.append(float(jnp.std(y - best.forward(x)) / NOISE))
    return {
        "tips": tips,
        "mse_median": float(np.median(errors)),
        "mse_quartiles": np.quantile(errors, (0.25, 0.75)).tolist(),
        "mse_mean": float(np.mean(errors)),
        "fits_with_a_residual_above_1.2_sigma": int(np.sum(np.array(residuals) > 1.2)),
        "cpu_seconds_a_tip": float(np.median(seconds)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--tips", type=int, default=50)
    given = parser.parse_args()
    key, of_plan = jax.random.split(jax.random.key(given.seed))
    design = planned(of_plan)
    print(json.dumps({"planned": design}), flush=True)
    errors = tips_found(key, (design["height"], design["pitch_px"]), given.tips)
    print(json.dumps({"seed": given.seed} | errors))


if __name__ == "__main__":
    main()
