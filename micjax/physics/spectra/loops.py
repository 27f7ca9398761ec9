"""Ferroelectric loops over a bias sweep, and current-voltage curves.

A sweep is a list of biases in the order in which they were applied. The order tells which of the
two branches of a loop a sample is on: that of rising or that of falling bias.
"""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from micjax.core.problem import parameter
from micjax.physics.spectra.scales import Priors, scales, spread_over

Sweep = Float[Array, " n"]
Number = Float[Array, "..."] | float

ROOT_PI = float(np.sqrt(np.pi))
BOLTZMANN_V_K = 8.617333e-5  # k / e


def rising(bias_V: Sweep) -> Bool[Array, " n"]:
    """Which samples are on the rising branch: the next bias is higher. Where the bias rests, and at
    the end, the direction is what it was."""
    change = jnp.diff(bias_V)
    moves = jnp.concatenate([change, jnp.zeros_like(bias_V[:1])])
    last = lax.cummax(jnp.where(moves != 0, jnp.arange(moves.size), -1))
    # a sweep that begins at rest has the direction of its first move
    start = jnp.argmax(moves != 0)
    return moves[jnp.where(last < 0, start, last)] > 0


def switched(bias_V: Number, coercive_V: Number, low_V: Number, high_V: Number) -> Number:
    """The share that has switched up, from 0 to 1, with a width below the coercive bias and another
    above it (Jesse, Kumar et al. 2009, Nanotechnology 20, 085703):

        (g erf((V - coercive) / g) + low) / (low + high),  g = low below coercive, else high.
    """
    away = bias_V - coercive_V
    g = jnp.where(away < 0, low_V, high_V)
    return (g * lax.erf(away / g) + low_V) / (low_V + high_V)


def bias_at_share_V(share: Number, coercive_V: Number, low_V: Number, high_V: Number) -> Number:
    """The bias at which this share has `switched`, 0 < share < 1: the inverse of that function."""
    excess = share * (low_V + high_V) - low_V
    g = jnp.where(excess < 0, low_V, high_V)
    return coercive_V + g * lax.erf_inv(excess / g)


class FerroelectricLoop(eqx.Module):
    """The loop of nine parameters of band-excitation spectroscopy (Jesse, Kumar et al. 2009),

        y = offset + switchable * switched + slope V,

    on either branch with a coercive bias and two widths of its own. `from_coefficients` takes the
    vector a0 to a4, b0 to b3 of `loop_fit_function` in BGlib; there the first half of a sweep
    has a2, b0, b1 whatever its direction. Here these belong to the falling branch.
    """

    offset: Float[Array, ""] = parameter()
    switchable: Float[Array, ""] = parameter()
    coercive_falling_V: Float[Array, ""] = parameter()
    coercive_rising_V: Float[Array, ""] = parameter()
    slope_per_V: Float[Array, ""] = parameter()
    falling_low_V: Float[Array, ""] = parameter()
    falling_high_V: Float[Array, ""] = parameter()
    rising_low_V: Float[Array, ""] = parameter()
    rising_high_V: Float[Array, ""] = parameter()

    @classmethod
    def from_coefficients(cls, coefficients: ArrayLike | Sequence[float]) -> "FerroelectricLoop":
        """From a0, a1, a2, a3, a4, b0, b1, b2, b3, the order of the fields."""
        return cls(*np.asarray(coefficients, float))

    def __call__(self, bias_V: Sweep) -> Sweep:
        up = rising(bias_V)
        share = switched(
            bias_V,
            jnp.where(up, self.coercive_rising_V, self.coercive_falling_V),
            jnp.where(up, self.rising_low_V, self.falling_low_V),
            jnp.where(up, self.rising_high_V, self.falling_high_V),
        )
        return self.offset + self.switchable * share + self.slope_per_V * bias_V

    def numbers(self, nucleated: float = 0.03) -> dict[str, Float[Array, ""]]:
        """What is read off a loop.

        **Arguments:**

        - `nucleated`: the share that has switched when domains are said to have nucleated.

        **Returns:** coercive biases, `imprint_V` (their mean), `remanent_falling` and
        `remanent_rising` (the response at no bias on either branch), `switchable`, `work` (the area
        between the branches, the integral of their difference over all biases), and
        `nucleation_rising_V` and `nucleation_falling_V`, where switching has begun.
        """
        falling = self.coercive_falling_V, self.falling_low_V, self.falling_high_V
        up = self.coercive_rising_V, self.rising_low_V, self.rising_high_V
        zero = jnp.zeros_like(self.offset)
        asymmetry = (falling[1] - falling[2] - up[1] + up[2]) / ROOT_PI
        width = self.coercive_rising_V - self.coercive_falling_V
        return {
            "coercive_falling_V": self.coercive_falling_V,
            "coercive_rising_V": self.coercive_rising_V,
            "imprint_V": (self.coercive_falling_V + self.coercive_rising_V) / 2.0,
            "remanent_falling": self.offset + self.switchable * switched(zero, *falling),
            "remanent_rising": self.offset + self.switchable * switched(zero, *up),
            "switchable": self.switchable,
            "work": self.switchable * (width + asymmetry),
            "nucleation_rising_V": bias_at_share_V(nucleated, *up),
            "nucleation_falling_V": bias_at_share_V(1.0 - nucleated, *falling),
        }

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors from the sweep `x` (V) and the responses `y` `[..., n]`: biases on the sweep,
        widths from a step to the whole of it, `switchable` of either sign."""
        s = scales(x, y)
        names = ("falling_low_V", "falling_high_V", "rising_low_V", "rising_high_V")
        widths = {name: spread_over(s.step, s.span) for name in names}
        return {
            "offset": s.level(),
            "switchable": dist.Normal(0.0, 4.0 * s.size),
            "coercive_falling_V": s.place(),
            "coercive_rising_V": s.place(),
            "slope_per_V": dist.Normal(0.0, s.size / s.span),
        } | widths


def wright_omega(s: Array) -> Array:
    """omega + ln omega = s, of real s: W(exp(s)) of Lambert without the overflow.

    A first approximation to 2 %, then two steps of fourth order (Fritsch, Shafer & Crowley 1973,
    Commun. ACM 16, 123; Lawrence, Corless & Jeffrey 2012, ACM TOMS 38, 20): exact to rounding.
    """
    s = jnp.asarray(s)
    soft = jnp.logaddexp(s, 0.0)
    omega = soft * (1.0 - jnp.log1p(soft) / (2.0 + soft))
    # far below, omega is exp(s) to rounding, and its logarithm would be that of nothing
    far = s < -30.0
    omega = jnp.where(far, 1.0, omega)
    for _ in range(2):
        rest = jnp.where(far, 0.0, s) - omega - jnp.log(omega)
        q = 2.0 * (1.0 + omega) * (1.0 + omega + 2.0 / 3.0 * rest)
        omega = omega * (1.0 + rest / (1.0 + omega) * (q - rest) / (q - 2.0 * rest))
    return jnp.where(far, jnp.exp(jnp.minimum(s, 0.0)), omega)


def diode(
    bias_V: Sweep,
    saturation: Number,
    ideality_V: Number,
    series: Number,
    shunt: Number,
) -> Sweep:
    """The current of a diode with a series and a shunt resistance,

        I = I0 (exp((V - I Rs) / n kT) - 1) + (V - I Rs) / Rp,

    solved for I by the function of Lambert (Jain & Kapoor 2004, Sol. Energy Mater. Sol. Cells 81,
    269): (V - I Rs) / n kT = c - omega(ln b + c), b = I0 Rs / a, c = (V + I0 Rs) / a,
    a = n kT (1 + Rs / Rp).

    **Arguments:**

    - `saturation`: I0, in units of the current.
    - `ideality_V`: n kT / e, 0.0259 V times the ideality at 300 K.
    - `series`, `shunt`: Rs > 0 and Rp, in V per unit of current.
    """
    a = ideality_V * (1.0 + series / shunt)
    log_b = jnp.log(saturation) + jnp.log(series) - jnp.log(a)
    c = (bias_V + saturation * series) / a
    omega = wright_omega(log_b + c)
    # where most of the bias falls over the resistance, c - omega is a small difference of large
    # numbers, which ln(omega / b) is not
    large = omega > 1.0
    junction = jnp.where(large, jnp.log(jnp.where(large, omega, 1.0)) - log_b, c - omega)
    return saturation * jnp.expm1(junction) + ideality_V * junction / shunt


class Diode(eqx.Module):
    """A `diode`: currents in any unit, resistances in V per that unit."""

    saturation: Float[Array, ""] = parameter()
    ideality: Float[Array, ""] = parameter()
    series: Float[Array, ""] = parameter()
    shunt: Float[Array, ""] = parameter()
    temperature_K: Float[Array, ""] = parameter(default=300.0)

    def __call__(self, bias_V: Sweep) -> Sweep:
        thermal_V = BOLTZMANN_V_K * self.temperature_K
        return diode(bias_V, self.saturation, self.ideality * thermal_V, self.series, self.shunt)

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors; the saturation current from 1e-10 of the largest current to it, resistances
        from 1e-3 to 1e3 (series) and from 1 to 1e6 (shunt) times the largest bias over it."""
        s = scales(x, y)
        largest_V = max(abs(s.low), abs(s.high))
        return {
            "saturation": spread_over(1e-10 * s.size, s.size),
            "ideality": dist.LogNormal(np.log(1.5), 0.5),
            "series": spread_over(1e-3 * largest_V / s.size, 1e3 * largest_V / s.size),
            "shunt": spread_over(largest_V / s.size, 1e6 * largest_V / s.size),
        }


class Ohmic(eqx.Module):
    """`conductance` times the bias, plus `offset`: the amplifier's current at none."""

    conductance: Float[Array, ""] = parameter()
    offset: Float[Array, ""] = parameter(default=0.0)

    def __call__(self, bias_V: Sweep) -> Sweep:
        return self.conductance * bias_V + self.offset

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors of the fields, of currents `y` `[..., n]` at biases `x` `[n]`."""
        s = scales(x, y)
        return {"conductance": dist.Normal(0.0, 4.0 * s.size / s.span), "offset": s.level()}
