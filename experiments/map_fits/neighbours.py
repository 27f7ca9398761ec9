"""Neighbouring pixels that are alike, at 100 counts a pixel: one problem of all of them.

    python experiments/map_fits/neighbours.py [--seeds 100 101 ...] [--pixels 40] [--counts 100]

One peak on a background of counts, its place over the map: two domains and a drift; grains of as
many values; a slope; nothing but noise about one value. One JSON line for each map and seed: rms
error of the place (over its width) of each pixel by itself, of the filters of such maps that the
truth would choose, of `smooth_map`; the error beside an edge and further than a pixel from any; how
often 90 % intervals hold.
"""

import argparse
import json
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.ndimage

import micjax
from micjax.core.problem import parameter
from micjax.physics.noise import Poisson

X = np.linspace(-5.0, 5.0, 64)
FWHM, BACKGROUND = 1.5, 0.2  # counts of a channel
NAMES = ("forward.centre",)


class Peak(eqx.Module):
    centre: jax.Array = parameter(default=0.0)
    height: jax.Array = parameter(default=10.0)
    width: jax.Array = parameter(default=FWHM)
    level: jax.Array = parameter(default=BACKGROUND)

    def __call__(self, x):
        bump = jnp.exp(-4.0 * jnp.log(2.0) * ((x - self.centre) / self.width) ** 2)
        return self.height * bump + self.level


def problem() -> micjax.InverseProblem:
    priors = {
        "forward.centre": dist.Normal(0.0, 2.0),
        "forward.height": dist.LogNormal(np.log(10.0), 1.0),
        "forward.width": dist.LogNormal(np.log(FWHM), 0.3),
        "forward.level": dist.LogNormal(np.log(BACKGROUND), 1.0),
    }
    return micjax.InverseProblem(Peak(), Poisson(1.0), priors)


def domains(rng, y, x):
    wall = x - 0.5 + 0.15 * np.sin(2.0 * np.pi * y + rng.uniform(0.0, 6.0)) > 0
    return np.where(wall, 0.6, -0.6) + rng.uniform(-0.4, 0.4) * y + rng.uniform(-0.4, 0.4) * x


def grains(rng, y, x):
    places = rng.uniform(0.0, 1.0, (8, 2))
    nearest = ((y[..., None] - places[:, 0]) ** 2 + (x[..., None] - places[:, 1]) ** 2).argmin(-1)
    return rng.uniform(-1.0, 1.0, 8)[nearest]


def slope(rng, y, x):
    return np.sin(2.0 * np.pi * (x * rng.uniform(0.3, 0.7) + y * rng.uniform(0.3, 0.7)))


def nothing(rng, y, x):
    """Each pixel is another: no likeness at all."""
    return rng.normal(0.0, 0.5, x.shape)


MAPS = {"domains": domains, "grains": grains, "slope": slope, "no likeness": nothing}


def edges(place) -> tuple[np.ndarray, np.ndarray]:
    """Pixels beside an edge, and those further than one pixel from any."""
    beside = np.zeros(place.shape, bool)
    for axis in (0, 1):
        far = np.abs(np.diff(place, axis=axis)) > 0.15
        pad = [(0, 0), (0, 0)]
        for side in ((0, 1), (1, 0)):
            pad[axis] = side
            beside |= np.pad(far, pad)
    return beside, ~scipy.ndimage.binary_dilation(beside, np.ones((3, 3)))


def rms(off) -> float:
    return float(np.sqrt(np.mean(off**2))) if off.size else float("nan")


def measured(kind: str, seed: int, pixels: int, counts: float) -> dict:
    rng = np.random.default_rng(seed)
    y, x = np.indices((pixels, pixels)) / pixels
    place = MAPS[kind](rng, y, x)
    height = counts * (X[1] - X[0]) / (FWHM * 1.0645)
    bump = np.exp(-4.0 * np.log(2.0) * ((X - place[..., None]) / FWHM) ** 2)
    data = rng.poisson(height * bump + BACKGROUND).astype(float)
    start = {"forward.centre": X[scipy.ndimage.gaussian_filter1d(data, 2.0, axis=-1).argmax(-1)]}
    own = micjax.fit_map(problem(), X, data, starts=start, neighbours=1, covariance=True)
    began = time.process_time()
    together = micjax.smooth_map(problem(), X, data, own, NAMES)
    seconds = time.process_time() - began
    mine, alike = (f.values["forward.centre"] - place for f in (own, together))
    by_truth = [
        min(rms(f(own.values["forward.centre"], s) - place) for s in sizes)
        for f, sizes in (
            (scipy.ndimage.median_filter, (1, 3, 5)),
            (scipy.ndimage.gaussian_filter, (0.0, 0.5, 0.75, 1.0, 1.5, 2.0)),
        )
    ]
    beside, inside = edges(place)
    has_edges = kind in ("domains", "grains")
    return {
        "map": kind,
        "seed": seed,
        "each pixel": rms(mine),
        "median, by the truth": by_truth[0],
        "Gaussian, by the truth": by_truth[1],
        "together": rms(alike),
        "ratio": rms(alike) / rms(mine),
        "each pixel, beside an edge": rms(mine[beside]) if has_edges else None,
        "together, beside an edge": rms(alike[beside]) if has_edges else None,
        "together, further inside": rms(alike[inside]) if has_edges else None,
        "each pixel, inside": float(np.mean(np.abs(mine) < 1.645 * own.sd["forward.centre"])),
        "together, inside": float(np.mean(np.abs(alike) < 1.645 * together.sd["forward.centre"])),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103])
    parser.add_argument("--pixels", type=int, default=40)
    parser.add_argument("--counts", type=float, default=100.0)
    parser.add_argument("--maps", nargs="+", choices=list(MAPS), default=list(MAPS))
    given = parser.parse_args()
    for kind in given.maps:
        rows = [measured(kind, s, given.pixels, given.counts) for s in given.seeds]
        means = {
            n: None if rows[0][n] is None else float(np.mean([r[n] for r in rows]))
            for n in list(rows[0])[2:]
        }
        for row in [*rows, {"map": kind, "seed": "mean"} | means]:
            shown = {n: round(v, 3) if isinstance(v, float) else v for n, v in row.items()}
            print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
