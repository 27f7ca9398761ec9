"""Thirty fits that end too early, in awkward units, or in the wrong minimum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from micjax import Gaussian, InverseProblem


class Curve(eqx.Module):
    """y = function(x, **values)."""

    values: dict[str, jax.Array]
    function: Callable = eqx.field(static=True)

    def __init__(self, function, values):
        self.function = function
        self.values = {n: jnp.asarray(v, float) for n, v in values.items()}

    def __call__(self, x):
        return self.function(x, **self.values)


class Case(NamedTuple):
    """A problem at its start, its data, and how it is solved."""

    kind: str
    problem: InverseProblem
    x: jax.Array
    y: jax.Array
    engine: dict[str, Any]


def case(kind, function, x, truth, start, priors, noise, seed, **engine) -> Case:
    rng = np.random.default_rng(seed)
    x = jnp.asarray(x, float)
    priors = {f"forward.values.{n}": prior for n, prior in priors.items()}
    problem = InverseProblem(Curve(function, start), Gaussian(noise), priors)
    clean = np.asarray(Curve(function, truth)(x))
    return Case(kind, problem, x, jnp.asarray(clean + noise * rng.normal(size=len(x))), engine)


def decay(x, a, tau):
    return a * jnp.exp(-x / tau)


def two_decays(x, a, b, tau, ratio):
    return a * jnp.exp(-x / tau) + b * jnp.exp(-x / (tau * ratio))


def peak(x, height, centre, width):
    return height * jnp.exp(-0.5 * ((x - centre) / width) ** 2)


def doublet(x, height, centre, apart, width):
    low, high = (peak(x, height, centre + s * apart, width) for s in (-0.5, 0.5))
    return low + high


def ringing(x, a, frequency, phase, tau):
    return a * jnp.exp(-x / tau) * jnp.cos(2.0 * jnp.pi * frequency * x + phase)


def wave(x, frequency):
    return jnp.sin(2.0 * jnp.pi * frequency * x)


def chirp(x, frequency, rate):
    return jnp.sin(2.0 * jnp.pi * (frequency * x + 0.5 * rate * x**2))


def step(x, a, at, width):
    return a * jax.scipy.special.ndtr((x - at) / width)


def power(x, a, exponent):
    return a * x**-exponent


def lorentzian(x, height, centre, width):
    return height / (1.0 + ((x - centre) / width) ** 2)


def two_beams(x, a, shift):
    return 1.0 + a**2 + 2.0 * a * jnp.cos(x * shift)


def quintic(x, a, b, c, d, e, f):
    return a + x * (b + x * (c + x * (d + x * (e + x * f))))


N, L = dist.Normal, dist.LogNormal


def cases(seed: int) -> dict[str, Case]:
    """By name."""
    line = np.linspace(0.0, 10.0, 100)
    out: dict[str, Case] = {}

    def early(name, *args, **engine):
        out[name] = case("stopped early", *args, seed, **engine)

    def scaled(name, *args):
        out[name] = case("awkward units", *args, seed)

    def several(name, *args):
        out[name] = case("several minima", *args, seed)

    rates = {"a": 2.0, "tau": 3.0}
    broad = {"a": L(0.0, 2.0), "tau": L(0.0, 2.0)}
    far = {"a": 0.1, "tau": 30.0}
    early("decay, 2 steps", decay, line, rates, far, broad, 0.05, steps=2)
    early(
        "decay, Adam of 1e-6", decay, line, rates, far, broad, 0.05, steps=400, learning_rate=1e-6
    )
    four = {"a": 1.0, "b": 1.0, "tau": 1.0, "ratio": 3.0}
    wide = {n: L(0.0, 1.0) for n in ("a", "b", "tau")} | {"ratio": L(1.0, 0.5)}
    begin = {"a": 0.3, "b": 3.0, "tau": 3.0, "ratio": 1.5}
    early("two decays, 5 steps", two_decays, line, four, begin, wide, 0.02, steps=5)
    early("two decays, Adam of 1e-3", two_decays, line, four, begin, wide, 0.02, steps=300,
          learning_rate=1e-3)  # fmt: skip
    of_peak = {"height": L(0.0, 2.0), "centre": N(5.0, 3.0), "width": L(0.0, 1.0)}
    at = {"height": 1.0, "centre": 5.0, "width": 0.8}
    early("peak, 3 steps", peak, line, at, at | {"centre": 3.5}, of_peak, 0.05, steps=3)
    early("peak, Adam of 1", peak, line, at, at | {"centre": 4.0}, of_peak, 0.05, steps=300,
          learning_rate=1.0)  # fmt: skip
    pair = {"height": 1.0, "centre": 5.0, "apart": 1.5, "width": 0.7}
    of_pair = of_peak | {"apart": L(0.0, 1.0)}
    early("doublet, 6 steps", doublet, line, pair, pair | {"apart": 0.3}, of_pair, 0.05, steps=6)
    rung = {"a": 1.0, "frequency": 0.8, "phase": 0.4, "tau": 4.0}
    of_ring = {"a": L(0.0, 1.0), "frequency": N(0.8, 0.1), "phase": N(0.0, 1.0), "tau": L(1.0, 1.0)}
    early("ringing, 4 steps", ringing, line, rung, rung | {"tau": 1.0}, of_ring, 0.05, steps=4)
    six = dict(zip("abcdef", (1.0, -0.5, 0.2, 0.1, -0.05, 0.01), strict=True))
    zero = dict.fromkeys("abcdef", 0.0)
    of_six = {n: N(0.0, 10.0) for n in six}
    early("quintic, 8 steps", quintic, line, six, zero, of_six, 0.1, steps=8)
    early("quintic, Adam", quintic, line, six, zero, of_six, 0.1, steps=1000, learning_rate=2e-2)

    for unit, values in ((1e-9, 1e-6), (1e9, 1e-3), (1e-9, 1e9)):
        scaled(
            f"peak in {unit:g}, values of {values:g}", peak, unit * line,
            {"height": values, "centre": 5 * unit, "width": 0.8 * unit},
            {"height": 0.2 * values, "centre": 4 * unit, "width": 2 * unit},
            {"height": L(np.log(values), 2.0), "centre": N(5 * unit, 3 * unit),
             "width": L(np.log(unit), 1.0)}, 0.05 * values,
        )  # fmt: skip
    for unit in (1e-9, 1e6):
        scaled(
            f"decay in {unit:g}", decay, unit * line, {"a": 2.0, "tau": 3 * unit},
            {"a": 0.3, "tau": 20 * unit}, {"a": L(0.0, 2.0), "tau": L(np.log(unit), 2.0)}, 0.05,
        )  # fmt: skip
    for unit in (1e-9, 1e9):
        scaled(
            f"step in {unit:g}", step, unit * (line - 5), {"a": 1.0, "at": unit, "width": unit},
            {"a": 3.0, "at": -2 * unit, "width": 3 * unit},
            {"a": N(0.0, 3.0), "at": N(0.0, 3 * unit), "width": L(np.log(unit), 1.0)}, 0.05,
        )  # fmt: skip
    scaled("power law, 1 to 1e6", power, np.geomspace(1.0, 1e3, 60), {"a": 1e6, "exponent": 2.0},
           {"a": 1e4, "exponent": 1.0}, {"a": L(np.log(1e5), 3.0), "exponent": N(2.0, 1.0)},
           10.0)  # fmt: skip
    scaled("quintic, 0 to 10", quintic, line, six, zero, of_six, 0.1)
    scaled("ringing in 1e-6", ringing, 1e-6 * line, rung | {"frequency": 8e5, "tau": 4e-6},
           rung | {"frequency": 7.8e5, "tau": 2e-6},
           of_ring | {"frequency": N(8e5, 1e5), "tau": L(np.log(3e-6), 1.0)}, 0.05)  # fmt: skip

    band = {"frequency": dist.Uniform(0.1, 3.0)}
    several("wave, too slow", wave, line, {"frequency": 1.3}, {"frequency": 0.5}, band, 0.3)
    several("wave, too fast", wave, line, {"frequency": 0.7}, {"frequency": 1.9}, band, 0.3)
    several("chirp", chirp, line, {"frequency": 0.5, "rate": 0.1}, {"frequency": 0.9, "rate": 0.02},
            band | {"rate": dist.Uniform(0.0, 0.3)}, 0.2)  # fmt: skip
    several("two beams", two_beams, line, {"a": 0.5, "shift": 4.0}, {"a": 0.5, "shift": 2.5},
            {"a": dist.Uniform(0.0, 1.0), "shift": dist.Uniform(0.5, 8.0)}, 0.1)  # fmt: skip
    narrow = {"height": 1.0, "centre": 7.0, "width": 0.3}
    aside = narrow | {"centre": 2.0}
    several("peak, far off", peak, line, narrow, aside, of_peak, 0.05)
    several("Lorentzian, far off", lorentzian, line, narrow, aside, of_peak, 0.05)
    several("doublet as one peak", doublet, line, pair | {"apart": 4.0},
            pair | {"centre": 7.0, "apart": 0.2}, of_pair, 0.05)  # fmt: skip
    several("ringing, next beat", ringing, line, rung, rung | {"frequency": 1.3},
            of_ring | {"frequency": dist.Uniform(0.1, 3.0)}, 0.05)  # fmt: skip
    several("step at the other end", step, line, {"a": 1.0, "at": 8.0, "width": 0.1},
            {"a": 1.0, "at": 0.5, "width": 0.1},
            {"a": N(0.0, 3.0), "at": dist.Uniform(0.0, 10.0), "width": L(-2.0, 0.5)},
            0.05)  # fmt: skip
    several("two decays, exchanged", two_decays, line, four, {"a": 1.0, "b": 1.0, "tau": 3.0,
            "ratio": 0.33}, wide | {"ratio": L(0.0, 1.5)}, 0.02)  # fmt: skip
    return out
