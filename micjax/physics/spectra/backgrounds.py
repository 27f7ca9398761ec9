"""What lines and edges stand on: straight lines, power laws, decays.

Each is normalised at a `reference` on the axis, which is known: the level there and the slope or
exponent are then all but uncorrelated in a fit.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from micjax.core.problem import parameter
from micjax.physics.spectra.scales import Priors, scales, spread_over

Axis = Float[Array, "..."]
Number = Float[Array, "..."] | float


def power_law(x: Axis, level: Number, exponent: Number, reference: Number) -> Axis:
    """level (x / reference)^-exponent, nothing where x / reference is not positive.

    The background below an ionisation edge, exponents 2 to 6 (Egerton 2011, Electron Energy-Loss
    Spectroscopy in the Electron Microscope, 3rd ed., eq. 4.51).
    """
    ratio = x / reference
    inside = ratio > 0.0
    return jnp.where(inside, level * jnp.exp(-exponent * jnp.log(jnp.where(inside, ratio, 1.0))), 0)


def exponential_decay(x: Axis, level: Number, decay: Number, start: Number = 0.0) -> Axis:
    """level exp(-(x - start) / decay); `decay` in units of x."""
    return level * jnp.exp(-(x - start) / decay)


def stretched_decay(
    x: Axis, level: Number, decay: Number, stretching: Number, start: Number = 0.0
) -> Axis:
    """level exp(-((x - start) / decay)^stretching), `level` before the start (Kohlrausch 1854;
    Williams & Watts 1970, Trans. Faraday Soc. 66, 80); stretching = 1 is an exponential."""
    ratio = (x - start) / decay
    after = ratio > 0.0
    power = jnp.exp(stretching * jnp.log(jnp.where(after, ratio, 1.0)))
    return level * jnp.exp(-jnp.where(after, power, 0.0))


class Level(eqx.Module):
    """The same everywhere: `level` in units of y."""

    level: Float[Array, ""] = parameter()

    def __call__(self, x: Axis) -> Axis:
        return jnp.broadcast_to(self.level, jnp.shape(x))

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors of the fields, of data `y` `[..., n]` on the axis `x` `[n]`."""
        return {"level": scales(x, y).level()}


class StraightLine(eqx.Module):
    """`level` + `slope` (x - `reference`): units of y, of y per x, and of x."""

    level: Float[Array, ""] = parameter()
    slope: Float[Array, ""] = parameter()
    reference: Float[Array, ""] = parameter(default=0.0)

    def __call__(self, x: Axis) -> Axis:
        return self.level + self.slope * (x - self.reference)

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors of the fields, of data `y` `[..., n]` on the axis `x` `[n]`."""
        s = scales(x, y)
        return {"level": s.level(), "slope": dist.Normal(0.0, 4.0 * s.size / s.span)}


class PowerLaw(eqx.Module):
    """A `power_law`: `level` (units of y) at `reference` (units of x), and its `exponent`."""

    level: Float[Array, ""] = parameter()
    exponent: Float[Array, ""] = parameter()
    reference: Float[Array, ""] = parameter()

    def __call__(self, x: Axis) -> Axis:
        return power_law(x, self.level, self.exponent, self.reference)

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors of the fields; of the exponent a normal one, 3 +- 2."""
        return {"level": scales(x, y).height(), "exponent": dist.Normal(3.0, 2.0)}


class ExponentialDecay(eqx.Module):
    """An `exponential_decay`: `level` (units of y) at `start`, and `decay` (units of x)."""

    level: Float[Array, ""] = parameter()
    decay: Float[Array, ""] = parameter()
    start: Float[Array, ""] = parameter(default=0.0)

    def __call__(self, x: Axis) -> Axis:
        return exponential_decay(x, self.level, self.decay, self.start)

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors of the fields; a decay within a channel up to ten times the axis."""
        s = scales(x, y)
        return {"level": s.level(), "decay": spread_over(s.step, 10.0 * s.span)}


class StretchedDecay(eqx.Module):
    """A `stretched_decay`: `level` (units of y) at `start`, `decay` (units of x), `stretching`."""

    level: Float[Array, ""] = parameter()
    decay: Float[Array, ""] = parameter()
    stretching: Float[Array, ""] = parameter(default=1.0)
    start: Float[Array, ""] = parameter(default=0.0)

    def __call__(self, x: Axis) -> Axis:
        return stretched_decay(x, self.level, self.decay, self.stretching, self.start)

    @classmethod
    def priors(cls, x: ArrayLike, y: ArrayLike) -> Priors:
        """Weak priors of the fields; the stretching about 0.7, within a factor of 2."""
        stretching = dist.LogNormal(np.log(0.7), 0.35)
        return ExponentialDecay.priors(x, y) | {"stretching": stretching}
