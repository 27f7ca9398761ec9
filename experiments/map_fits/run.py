"""Whether fits of maps are as good and as sure as they say: coverage, the bound of Cramér and Rao.

    python experiments/map_fits/run.py            # one JSON line a row

Each row is drawn from seeds which nothing was chosen on.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

from micjax import InverseProblem, Poisson, fit_map, solve
from micjax.inference.maps.each import one_pixel
from micjax.inference.maps.status import STATUS
from micjax.physics.spectra.backgrounds import Level
from micjax.physics.spectra.composed import SumOf
from micjax.physics.spectra.line_shapes import (
    DoniachSunjicLine,
    FanoLine,
    GaussianLine,
    LorentzianLine,
    PseudoVoigtLine,
    VoigtLine,
)
from micjax.physics.spectra.scales import under
from micjax.problems import peaks, sho

X = np.linspace(-8.0, 8.0, 128)
OWN = {  # what a shape has beside height, centre and width, from where to where
    GaussianLine: {},
    LorentzianLine: {},
    PseudoVoigtLine: {"lorentzian_share": (0.2, 0.8)},
    VoigtLine: {},
    FanoLine: {"q": (1.0, 4.0)},
    DoniachSunjicLine: {"asymmetry": (0.05, 0.25)},
}


def drawn(shape, n: int, rng) -> dict[str, np.ndarray]:
    """Values of a line and a background of a twentieth of it."""
    ranges = {"centre": (-1.5, 1.5)} | OWN[shape]
    widths = ("fwhm_gaussian", "fwhm_lorentzian") if shape is VoigtLine else ("fwhm",)
    ranges |= dict.fromkeys(widths, (1.5, 3.0) if len(widths) == 1 else (0.8, 2.0))
    values = {f"peak.{k}": rng.uniform(*r, n) for k, r in ranges.items()}
    return values | {"peak.height": np.ones(n), "background.level": np.full(n, 0.05)}


def coverage(shape, counts: float, n: int, seed: int) -> dict:
    """Of 90 % intervals, and how the fits ended."""
    rng = np.random.default_rng(seed)
    fields = [f.name for f in shape.__dataclass_fields__.values()]
    model = SumOf({"peak": shape(*np.ones(len(fields))), "background": Level(1.0)})
    values = drawn(shape, n, rng)
    one = InverseProblem(model, Poisson(1.0), {})
    predict = jax.jit(
        jax.vmap(
            lambda v: one.at({f"forward.{k}": a for k, a in v.items()}).forward(jnp.asarray(X))
        )
    )
    unit = np.asarray(predict({k: jnp.asarray(v) for k, v in values.items()}), float)
    size = counts / unit.sum(axis=1)
    for name in ("peak.height", "background.level"):
        values[name] = values[name] * size
    y = rng.poisson(np.maximum(unit, 0.0) * size[:, None]).astype(float)
    priors = under("forward", model.priors(X, y))
    priors["forward.background.level"] = priors["forward.peak.height"]
    # begun one standard deviation of what was drawn away from the truth, and never on it
    starts = {
        f"forward.{k}": v * np.exp(0.2 * rng.normal(size=n))
        if v.min() > 0
        else v + 0.3 * rng.normal(size=n)
        for k, v in values.items()
    }
    for name in ("lorentzian_share", "asymmetry"):
        if f"forward.peak.{name}" in starts:
            starts[f"forward.peak.{name}"] = np.clip(starts[f"forward.peak.{name}"], 0.02, 0.98)
    fit = fit_map(InverseProblem(model, Poisson(1.0), priors), X, y, starts=starts, steps=200)
    well = fit.status == STATUS.index("converged")
    held = {
        k: float(
            np.mean(
                np.abs(fit.values[f"forward.{k}"] - v)[well] < 1.645 * fit.sd[f"forward.{k}"][well]
            )
        )
        for k, v in values.items()
    }
    return {
        "shape": shape.__name__,
        "counts": counts,
        "spectra": n,
        "90 % hold": {k.partition(".")[2]: round(v, 3) for k, v in held.items()},
        "status": {k: v for k, v in fit.counts().items() if v},
    }


def bound(n: int, seed: int) -> dict:
    """rms errors of resonances over the bound of Cramér and Rao at the truth."""
    truth, x, _ = sho.example(jax.random.key(seed), 2, 2)
    pixel, _ = one_pixel(truth)
    pixel = pixel.at({"forward.f0_kHz": 352.0, "forward.Q": 90.0, "forward.phase_rad": 0.4})
    mean, sigma = np.asarray(pixel.forward(x)), float(pixel.noise.sigma)
    y = mean + sigma * np.random.default_rng(seed).normal(size=(n, *mean.shape))
    fit = fit_map(pixel, x, y, starts=sho.starts(pixel, np.asarray(x), y))
    names = [k for k in fit.values if k != "noise.sigma"]
    slopes = jax.jacfwd(lambda v: pixel.at(v).forward(x))({k: pixel.values()[k] for k in names})
    rows = np.stack([np.asarray(slopes[k], float).ravel() for k in names])
    best = np.sqrt(np.diag(np.linalg.inv(rows @ rows.T))) * sigma
    true = pixel.values()
    rms = [np.sqrt(np.mean((fit.values[k] - float(true[k])) ** 2)) for k in names]
    return {
        "shape": "oscillator",
        "spectra": n,
        "rms over the bound": {
            k.partition(".")[2]: round(float(r / b), 3)
            for k, r, b in zip(names, rms, best, strict=True)
        },
        "status": {k: v for k, v in fit.counts().items() if v},
    }


def spectra_with(n: int, counts: float, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The axis, 1 to 3 Gaussians at least 1.5 apart for each spectrum, and how many there are."""
    x = np.linspace(0.0, 10.0, 100)
    count, y = rng.integers(1, 4, n), np.full((n, len(x)), 0.05)
    for row, k in zip(y, count, strict=True):
        places = np.zeros(2)
        while len(places) > 1 and np.diff(places).min() < 1.5:
            places = np.sort(rng.uniform(1.5, 8.5, k))
        for place in places:
            height, fwhm = rng.uniform(0.4, 1.0), rng.uniform(0.6, 1.2)
            row += height * np.exp(-4.0 * np.log(2.0) * ((x - place) / fwhm) ** 2)
    y *= counts / y.sum(axis=1, keepdims=True)
    return x, rng.poisson(y).astype(float), count


def numbers_of(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """How many peaks there are by the evidence, of 1 to so many, and how sure that is."""
    axis = {"signal_low": 0.0, "signal_high": 10.0, "signal_step": 0.1}
    level = float(np.percentile(y, 99.9))
    problem = peaks.problem(1, len(y), peaks=list(range(1, most + 1)), level=level, **axis)
    axis_and_data = jnp.asarray(x), jnp.asarray(y[None])
    # neighbours have nothing to do with each other here
    solved = solve(peaks, problem, *axis_and_data, key=jax.random.key(0), neighbours=0)
    results = solved.results
    return results["number_of_peaks"].data[0], results["number_probability"].data[0]


def how_many(counts: float, n: int, seed: int) -> dict:
    """In how many spectra the evidence picks the true number of peaks, of 1 to 4."""
    x, y, count = spectra_with(n, counts, np.random.default_rng(seed))
    number, probability = numbers_of(x, y, 4)
    right, sure = number == count, probability > 0.9
    return {
        "shape": "1 to 3 Gaussians",
        "counts": counts,
        "spectra": n,
        "right": round(float(right.mean()), 3),
        "one too many": round(float((number > count).mean()), 3),
        "one too few": round(float((number < count).mean()), 3),
        "sure": round(float(sure.mean()), 3),
        "right where it is sure": round(float(right[sure].mean()), 3),
    }


def two(counts: float, separation: float, n: int, seed: int) -> dict:
    """In how many spectra two Gaussians so many widths apart are told to be two, of 1 to 3."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0.0, 10.0, 100)
    first = 5.0 - separation / 2.0 + rng.uniform(-0.3, 0.3, (n, 1))
    y = 0.05 + np.exp(-4.0 * np.log(2.0) * (x - first) ** 2)
    y += 0.7 * np.exp(-4.0 * np.log(2.0) * (x - first - separation) ** 2)
    y *= counts / y.sum(axis=1, keepdims=True)
    number, probability = numbers_of(x, rng.poisson(y).astype(float), 3)
    return {
        "shape": "two Gaussians, 1 : 0.7",
        "separation over fwhm": separation,
        "counts": counts,
        "spectra": n,
        "right": round(float((number == 2).mean()), 3),
        "wrong and sure": round(float(((number != 2) & (probability > 0.9)).mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spectra", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=100)
    asked = parser.parse_args()
    for shape in OWN:
        for counts in (1e5, 1e3, 1e2):
            print(json.dumps(coverage(shape, counts, asked.spectra, asked.seed)), flush=True)
    print(json.dumps(bound(asked.spectra, asked.seed)), flush=True)
    for counts in (1e5, 1e3, 1e2):
        print(json.dumps(how_many(counts, asked.spectra // 4, asked.seed)), flush=True)
    for counts in (1e5, 1e3, 1e2):
        for apart in (0.5, 0.75, 1.0, 1.5, 2.0):
            print(json.dumps(two(counts, apart, asked.spectra // 4, asked.seed)), flush=True)


if __name__ == "__main__":
    main()
