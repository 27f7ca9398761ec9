"""Normal equations of many small fits side by side.

Pixels lie along the last axis. What a model predicts at a datum is a few operations, and what is
needed of it are sums over the data of products of two slopes each: all of them are one reduction
over several operands, so that slopes are made where they are summed and never stored. With many
unknowns these operands would be too many to compile: there slopes are stored and multiplied.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float

from micjax.core.coordinates import Coordinates
from micjax.core.names import unknown_name
from micjax.core.problem import InverseProblem, Values
from micjax.inference.solvers.laws import DataLaw, depends, law_of

FEW = 10  # unknowns at most, whose slopes are not stored
MOST_CHANNELS = 4

Pixels = Float[Array, "d b"]


class NormalEquations(NamedTuple):
    """At one set of values, of each of b pixels.

    - `loss`: -log posterior, less what no values can change.
    - `chi_squared`: sum of the squared residuals, of counts Pearson's.
    - `slope`, `curvature`: of the loss; of the curvature the lower triangle, row by row.
    - `of_prior`: what the prior has to do with the diagonal of the curvature.
    """

    loss: Float[Array, " b"]
    chi_squared: Float[Array, " b"]
    slope: Float[Array, "d b"]
    curvature: Float[Array, "t b"]
    of_prior: Pixels


class Pixel(eqx.Module):
    """The problem of one pixel, and where its data were measured.

    **Arguments:**

    - `linear`: names of unknowns that the prediction is proportional to, or that are added to it.
    - `sizes`: names of unknowns that say how large a part of the model is.
    """

    problem: InverseProblem
    x: Any
    linear: tuple[str, ...] = eqx.field(default=(), static=True)
    sizes: tuple[str, ...] = eqx.field(default=(), static=True)

    def __check_init__(self):
        unknowns = self.problem.unknowns()
        for name in self.sizes:
            if name not in unknowns:
                raise ValueError("sizes: " + unknown_name("unknown", name, unknowns))
        for name in self.linear:
            if name not in unknowns:
                raise ValueError("linear: " + unknown_name("unknown", name, unknowns))
            base = support_of(unknowns[name])
            if base not in (dist.constraints.real, dist.constraints.positive):
                raise ValueError(
                    f"linear: {name} may be {base}; one that may be any number, or any positive "
                    "one, are needed"
                )

    def coordinates(self, known: Values) -> Coordinates:
        return Coordinates(self.problem.at(known) if known else self.problem)

    def leaps(self) -> Float[np.ndarray, " d"]:
        """How far one step may go: by a factor of e, where the support is not all real numbers and
        the coordinate therefore a logarithm or the like."""
        coordinates, unknowns = self.coordinates({}), self.problem.unknowns()
        bases = [support_of(unknowns[n]) for n in coordinates.owner]
        return np.array([np.inf if b is dist.constraints.real else 1.0 for b in bases])

    def linear_ones(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the linear unknowns are in the vector, and which of them as logarithms."""
        owner, unknowns = self.coordinates({}).owner, self.problem.unknowns()
        where = np.flatnonzero(np.isin(owner, self.linear))
        logarithms = [support_of(unknowns[owner[i]]) is dist.constraints.positive for i in where]
        return where, np.array(logarithms, bool)

    def law(self, known: Values, flat: Float[Array, " d"]):
        """The distribution of the data."""
        at = self.coordinates(known).at(flat)
        return at.noise(at.forward(self.x))

    def channels(self) -> int:
        """Of which a datum has as many as its last axis is short: real and imaginary part. What
        they are stacked from can be summed where it is made, and what they are stacked to cannot.
        """
        shape = eqx.filter_eval_shape(
            lambda p: p.problem.noise(p.problem.forward(p.x)), self
        ).batch_shape
        return shape[-1] if len(shape) > 1 and shape[-1] <= MOST_CHANNELS else 1

    def parameters(
        self, known: Values, flat: Float[Array, " d"], channel: int, channels: int
    ) -> tuple[Array, ...]:
        """Of the law, a number for each datum of a channel."""
        law = self.law(known, flat)
        shape = law.batch_shape
        return tuple(
            jnp.ravel(jnp.broadcast_to(getattr(law, n), shape)).reshape(-1, channels)[:, channel]
            if channels > 1
            else jnp.ravel(jnp.broadcast_to(getattr(law, n), shape))
            for n in law_of(law).parameters
        )

    def log_prior(self, known: Values, flat: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.asarray(self.coordinates(known).log_prior(flat), flat.dtype)


def support_of(prior: dist.Distribution):
    """Of one element."""
    support = prior.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def triangle(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a lower triangle, row by row."""
    return np.tril_indices(d)


def equations(
    pixel: Pixel,
    law: DataLaw,
    known: Values,
    y: Float[Array, "n b"],
    flat: Pixels,
    stored: bool | None = None,
) -> NormalEquations:
    """The `NormalEquations` at `flat`; data that are NaN do not count.

    **Arguments:**

    - `stored`: whether slopes are, as those of many unknowns: slower, and quicker to compile.
    """
    stored = len(flat) > FEW if stored is None else stored
    channels = pixel.channels()
    every = [
        _sums(
            pixel,
            law,
            known,
            y.reshape(-1, channels, y.shape[-1])[:, c],
            flat,
            (c, channels),
            stored,
        )
        for c in range(channels)
    ]
    misfit, chi_squared, slope, curvature = (sum(of) for of in zip(*every, strict=True))
    prior, of_prior, curved = _prior(pixel, known, flat)
    slope, curvature = slope - of_prior, curvature + curved
    diagonal = curved[np.array([i * (i + 3) // 2 for i in range(len(flat))])]
    return NormalEquations(misfit - prior, chi_squared, slope, curvature, diagonal)


def _sums(pixel, law, known, y, flat: Pixels, channel: tuple[int, int], stored: bool):
    """Over the data of a channel: misfit, chi^2, slope, curvature."""
    d = len(flat)

    def parameters(known, q):
        return pixel.parameters(known, q, *channel)

    def predicted(known, flat):
        """Parameters of the law, and those slopes of them that are not 0 for certain."""
        values, forward = jax.linearize(lambda q: parameters(known, q), flat)
        free = depends(lambda q: parameters(known, q), flat)
        unit = jnp.eye(d, dtype=flat.dtype)
        columns = [jax.vmap(forward)(unit)] if stored else list(map(forward, unit))
        return values, [tuple(c[k] for c in columns) if f else None for k, f in enumerate(free)]

    values, slopes = jax.vmap(predicted, -1, (-1, 0 if stored else -1))(known, flat)
    seen = jnp.isfinite(y)
    y = jnp.where(seen, y, values[0])
    scores = law.scores(y, *values)
    whitened, residuals = [], []
    for of, score in zip(slopes, scores, strict=True):
        if of is not None:
            root = jnp.where(seen, score.root, 0.0)
            root = root.T[:, None] if stored else root
            whitened.append([root * column for column in of])
            residuals.append(jnp.where(seen, score.residual, 0.0))
    first = jnp.where(seen, scores[0].residual, 0.0)
    terms = [jnp.where(seen, law.misfit(y, *values), 0.0), first**2]
    if not stored:
        terms += [sum(w[i] * r for w, r in zip(whitened, residuals, strict=True)) for i in range(d)]
        terms += [sum(w[i] * w[j] for w in whitened) for i, j in zip(*triangle(d), strict=True)]
    misfit, chi_squared, *rest = summed(terms)
    if stored:
        slope, curvature = multiplied([w[0] for w in whitened], residuals)
    else:
        slope, curvature = jnp.stack(rest[:d]), jnp.stack(rest[d:])
    return misfit, chi_squared, slope, curvature


def summed(terms: list[Float[Array, "n b"]]) -> list[Float[Array, " b"]]:
    """Of each its sum over the first axis."""

    def add(a, b):
        return tuple(x + y for x, y in zip(a, b, strict=True))

    return list(jax.lax.reduce(tuple(terms), tuple(t.dtype.type(0) for t in terms), add, (0,)))


def multiplied(
    whitened: list[Float[Array, "b d n"]], residuals: list[Float[Array, "n b"]]
) -> tuple[Pixels, Float[Array, "t b"]]:
    """Slope and curvature of all parameters of the law together."""
    slope, curvature = jnp.zeros(()), jnp.zeros(())
    for rows, residual in zip(whitened, residuals, strict=True):
        slope += jnp.einsum("bdn,nb->db", rows, residual)
        curvature += jnp.einsum("bdn,ben->deb", rows, rows)
    return slope, curvature[triangle(len(slope))]


def _prior(pixel: Pixel, known: Values, flat: Pixels):
    """log prior, its slope, and the curvature of minus it as far as that is convex."""

    def of_one(known, q):
        def log_prior(q):
            return pixel.log_prior(known, q)

        hessian = jax.hessian(log_prior)(q)
        # one that is not convex there must not turn the step around
        convex = jnp.diag(jnp.maximum(-jnp.diag(hessian), 0.0))
        return log_prior(q), jax.grad(log_prior)(q), convex[triangle(len(q))]

    return jax.vmap(of_one, in_axes=-1, out_axes=-1)(known, flat)


def any_data(y: Float[Array, "n b"]) -> Bool[Array, " b"]:
    return jnp.isfinite(y).any(axis=0)
