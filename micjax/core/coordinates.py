"""The unknowns of a problem as one vector: which element is which, and how wide its prior is."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, Theta, Values


class Coordinates(eqx.Module):
    """vector <-> {name: unconstrained array}, in the order of the names.

    **Arguments:**

    - `problem`: whose unknowns these are; the current values of those not named are kept.
    - `names`: which unknowns, in their order (default: all, sorted).

    **Raises:** `ValueError` for a name that is no unknown.
    """

    problem: InverseProblem
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, problem: InverseProblem, names=None):
        unknowns = problem.unknowns()
        names = tuple(sorted(unknowns)) if names is None else tuple(names)
        if wrong := sorted(set(names) - set(unknowns)):
            raise ValueError(f"no unknowns: {wrong}; there are {sorted(unknowns)}")
        self.problem, self.names = problem, names

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each unconstrained array."""
        unknowns, values = self.problem.unknowns(), self.problem.values()
        bijections = (dist.biject_to(unknowns[n].support) for n in self.names)
        return [
            tuple(b.inverse_shape(jnp.shape(values[n])))
            for n, b in zip(self.names, bijections, strict=True)
        ]

    @property
    def owner(self) -> np.ndarray:
        """The name that each element belongs to."""
        return np.repeat(self.names, [math.prod(shape) for shape in self.shapes])

    def vector(self, theta: Theta | None = None) -> Float[Array, "d"]:
        """`theta` as a vector; the current values without one."""
        theta = self.problem.unconstrain(self.problem.values()) if theta is None else theta
        return jnp.concatenate([jnp.ravel(theta[n]) for n in self.names])

    def theta(self, vector: Float[Array, "d"]) -> Theta:
        """The vector by name; unknowns that are not in `names` at their current values."""
        shapes = self.shapes
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        parts = jnp.split(vector, ends)
        named = {n: p.reshape(s) for n, p, s in zip(self.names, parts, shapes, strict=True)}
        if len(named) == len(self.problem.unknowns()):
            return named
        return self.problem.unconstrain(self.problem.values()) | named

    def values(self, vector: Float[Array, "d"]) -> Values:
        """The physical values of all unknowns."""
        return self.problem.constrain(self.theta(vector))

    def at(self, vector: Float[Array, "d"]) -> InverseProblem:
        """The problem at these values."""
        return self.problem.at(self.values(vector))

    def log_prior(self, vector: Float[Array, "d"]) -> Float[Array, ""]:
        """Of the physical values, all unknowns."""
        values = self.values(vector)
        return sum(p.log_prob(values[n]) for n, p in self.problem.unknowns().items())

    def log_volume(self, vector: Float[Array, "d"]) -> Float[Array, ""]:
        """log |d values / d theta|, which turns the density of values into that of `theta`."""
        theta, unknowns = self.theta(vector), self.problem.unknowns()
        bijections = {n: dist.biject_to(unknowns[n].support) for n in self.names}
        return sum(
            jnp.sum(b.log_abs_det_jacobian(theta[n], b(theta[n]))) for n, b in bijections.items()
        )

    def log_density(self, vector: Float[Array, "d"]) -> Float[Array, ""]:
        """Of the priors, as a density of the vector."""
        return self.log_prior(vector) + self.log_volume(vector)

    def widths(self) -> Float[Array, "d"]:
        """What each element is measured in: the prior's standard deviation of an unknown that may
        be any real number; 1 for the others, which the bijection onto their support has brought to
        the order of one, and for improper priors."""
        unknowns, theta = self.problem.unknowns(), self.problem.unconstrain(self.problem.values())
        return jnp.concatenate([jnp.ravel(_width(unknowns[n], theta[n])) for n in self.names])


def _width(prior: dist.Distribution, theta: Float[Array, "..."]) -> Float[Array, "..."]:
    support = getattr(prior.support, "base_constraint", prior.support)
    if support is not dist.constraints.real:
        return jnp.ones_like(theta)
    try:
        variance = jnp.broadcast_to(prior.variance, theta.shape)
    except NotImplementedError:  # an improper one has none
        return jnp.ones_like(theta)
    known = jnp.isfinite(variance) & (variance > 0)  # that of a Cauchy is infinite
    return jnp.where(known, jnp.sqrt(variance), 1.0)
