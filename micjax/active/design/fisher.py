"""What data at given settings say about the unknowns of a problem: its Fisher information.

    I(theta) = sum over data of J^T M J,   J = d eta / d theta,   M = information of eta,

where eta are the parameters of the noise distribution (mean, standard deviation, rate ...) and
theta the unknowns in unconstrained coordinates. Nothing is measured: `x` may be a mere plan. Rows
of `x` (its leading axis) are measurements, independent of each other once the unknowns are known.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import polygamma
from jaxtyping import Array, ArrayLike, Float

from micjax.core.coordinates import Coordinates
from micjax.core.precision import double
from micjax.core.problem import InverseProblem, Values
from micjax.inference.errors.laplace import FLAT, PRIOR_RULES
from micjax.inference.starts.draw import prior_draws

Metric = tuple[Float[Array, "... k"], Float[Array, "... k k"]]
DRAWS = 512  # of a prior, to average its curvature over


# --- the information of a noise distribution about its own parameters ---------------------------


@functools.singledispatch
def metric(noise: dist.Distribution) -> Metric:
    """Parameters eta of every datum's distribution and their Fisher information matrix.

    Exact for the distributions below; `metric.register` adds others.

    **Raises:** `ValueError` for a distribution that is not among them.
    """
    known = sorted(kind.__name__ for kind in metric.registry if kind is not object)
    raise ValueError(f"no Fisher information of {type(noise).__name__}; there are {known}")


def _stacked(parameters: Sequence[Array], information: Mapping[tuple[int, int], Array]) -> Metric:
    eta = jnp.stack(jnp.broadcast_arrays(*parameters), axis=-1)
    matrix = jnp.zeros((*eta.shape, len(parameters)), eta.dtype)
    for (i, j), value in information.items():
        matrix = matrix.at[..., i, j].set(value).at[..., j, i].set(value)
    return eta, matrix


@metric.register(dist.Normal)
@metric.register(dist.LogNormal)  # the same numbers about the logarithm
def _(noise) -> Metric:
    return _stacked(
        (noise.loc, noise.scale), {(0, 0): noise.scale**-2, (1, 1): 2 * noise.scale**-2}
    )


@metric.register
def _(noise: dist.Laplace) -> Metric:
    return _stacked((noise.loc, noise.scale), {(0, 0): noise.scale**-2, (1, 1): noise.scale**-2})


@metric.register
def _(noise: dist.StudentT) -> Metric:
    """Lange, Little & Taylor 1989, J. Am. Stat. Assoc. 84, 881, appendix B."""
    n, s = noise.df, noise.scale
    spread = polygamma(1, n / 2) - polygamma(1, (n + 1) / 2)
    return _stacked(
        (noise.loc, s, n),
        {
            (0, 0): (n + 1) / ((n + 3) * s**2),
            (1, 1): 2 * n / ((n + 3) * s**2),
            (2, 2): spread / 4 - (n + 5) / (2 * n * (n + 1) * (n + 3)),
            (1, 2): -2 / ((n + 1) * (n + 3) * s),
        },
    )


@metric.register
def _(noise: dist.Poisson) -> Metric:
    return _stacked((noise.rate,), {(0, 0): 1 / noise.rate})


@metric.register
def _(noise: dist.Exponential) -> Metric:
    return _stacked((noise.rate,), {(0, 0): noise.rate**-2})


@metric.register
def _(noise: dist.Gamma) -> Metric:
    shape, rate = noise.concentration, noise.rate
    return _stacked(
        (shape, rate),
        {(0, 0): polygamma(1, shape), (0, 1): -1 / rate, (1, 1): shape / rate**2},
    )


@metric.register
def _(noise: dist.Independent) -> Metric:
    return metric(noise.base_dist)


# --- the information of a measurement about the unknowns ----------------------------------------


@eqx.filter_jit
def data_information(
    problem: InverseProblem, x, weights: Float[Array, "n"] | None = None
) -> Float[Array, "d d"]:
    """Fisher information of the unknowns in data at `x`, at the current values, without the prior.

    In unconstrained coordinates, in the order of the sorted names. Differentiable in `x`.

    **Arguments:**

    - `weights`: how often each row of `x` is measured; 0 leaves a row out.
    """
    coordinates = Coordinates(problem)
    flat = coordinates.vector()

    def eta_and_metric(flat):
        at = coordinates.at(flat)
        return metric(at.noise(at.forward(x)))

    jacobian = jax.jacfwd(lambda flat: eta_and_metric(flat)[0])(flat)
    information = eta_and_metric(flat)[1]
    rows, k = information.shape[0] if information.ndim > 2 else 1, information.shape[-1]
    weights = jnp.ones(rows) if weights is None else weights
    jacobian, information = (
        jacobian.reshape(rows, -1, k, flat.size),
        information.reshape(rows, -1, k, k),
    )
    return jnp.einsum("n,npai,npab,npbj->ij", weights, jacobian, information, jacobian)


@eqx.filter_jit
def prior_information(problem: InverseProblem) -> Float[Array, "d d"]:
    """Expected curvature of the priors in unconstrained coordinates; zero for improper ones.

    E[-d^2 log p / d theta^2] over draws (van Trees 1968, part I, sec. 2.4), exact for Gaussians.
    """
    theta = problem.unconstrain(problem.values())
    blocks = [
        _curvature(p, theta[n].shape, jax.random.key(i))
        for i, (n, p) in enumerate(sorted(problem.unknowns().items()))
    ]
    return jax.scipy.linalg.block_diag(*blocks)


def _curvature(prior: dist.Distribution, shape: tuple[int, ...], key: Array) -> Array:
    size = int(np.prod(shape, dtype=int))
    values = prior_draws(prior, key, (DRAWS,))
    if values is None:
        return jnp.zeros((size, size))
    way = dist.biject_to(prior.support)
    draws = jax.vmap(lambda v: way.inv(v).ravel())(values)

    def log_density(flat):
        theta = flat.reshape(shape)
        value = way(theta)
        return jnp.sum(prior.log_prob(value)) + jnp.sum(way.log_abs_det_jacobian(theta, value))

    def add(total, draw):
        return total - jax.hessian(log_density)(draw) / DRAWS, None

    curvature, _ = jax.lax.scan(add, jnp.zeros((size, size)), draws)
    # a smooth density has a curvature of at least 1 / variance, which a kink (Laplace) hides
    floor = 1 / jnp.var(draws, axis=0)
    return jnp.where(jnp.all(jnp.diag(curvature) > floor / 2), curvature, jnp.diag(floor))


def information(
    problem: InverseProblem, x, weights: Float[Array, "n"] | None = None
) -> Float[Array, "d d"]:
    """Precision of the unknowns after measuring at `x`: of the data plus of the priors."""
    return prior_information(problem) + data_information(problem, x, weights)


def places(problem: InverseProblem, names: Sequence[str] | None = None) -> list[int]:
    """Where the elements of the named unknowns stand in the rows of an information matrix.

    **Raises:** `ValueError` for a name that is no unknown, and for no names.
    """
    unknowns = problem.unknowns()
    names = list(unknowns) if names is None else list(names)
    if wrong := sorted(set(names) - set(unknowns)):
        raise ValueError(f"no unknowns: {wrong}; there are {sorted(unknowns)}")
    if not names:
        raise ValueError(f"names is empty; the unknowns are {sorted(unknowns)}")
    return np.flatnonzero(np.isin(Coordinates(problem).owner, names)).tolist()


def log_det(precision: Float[ArrayLike, "d d"], wanted: Sequence[int]) -> Float[Array, ""]:
    """log det of the precision of the wanted elements, the others being integrated out.

    det A / det A_nn, n the nuisances: the determinant of the Schur complement.
    """
    precision = jnp.asarray(precision)
    rest = np.setdiff1d(np.arange(len(precision)), wanted)
    nuisances = precision[np.ix_(rest, rest)]
    return jnp.linalg.slogdet(precision)[1] - jnp.linalg.slogdet(nuisances)[1]


def d_gain(after, before, wanted: Sequence[int]) -> Float[Array, ""]:
    """D_s-optimality: nats gained about the wanted elements, half the growth of `log_det`."""
    return 0.5 * (log_det(after, wanted) - log_det(before, wanted))


def a_gain(
    after, before, wanted: Sequence[int], combinations: Float[ArrayLike, "k d"] | None = None
) -> Float[Array, ""]:
    """A_s-optimality: half the fall of the log of a mean variance; comparable with nats.

    The mean is over the wanted elements, each in units of its standard deviation before, or over
    the rows of `combinations` of all elements.
    """
    before, after = jnp.asarray(before), jnp.asarray(after)
    known = jnp.diag(before)
    unit = jnp.where(known > 0.0, known, 1.0) ** -0.5  # in each one's own unit
    old, new = (jnp.linalg.inv(unit[:, None] * m * unit) for m in (before, after))
    if combinations is None:
        combinations = jnp.diag(jnp.diag(old) ** -0.5)[np.asarray(wanted)]
    else:
        combinations = combinations * unit
    old, new = (jnp.einsum("ki,ij,kj", combinations, c, combinations) for c in (old, new))
    return 0.5 * (jnp.log(old) - jnp.log(new))


# --- what can be learnt -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Learnable:
    """What data at some settings would teach, to first order at some values of the unknowns.

    An unknown is not `identified` when it takes part in a direction of which the data say nothing,
    or when it would stay wider than 0.9 of its prior, as in `micjax.laplace`.
    """

    sd: dict[str, Float[np.ndarray, "..."]]  # expected, of the physical values; inf: nothing known
    relative_sd: dict[str, Float[np.ndarray, "..."]]  # to the prior's, in unconstrained coordinates
    identified: dict[str, bool]
    flat_directions: list[dict[str, float]]  # {name: its part}, parts squared add up to 1


@double
def learnable(
    problem: InverseProblem, x, weights: Float[np.ndarray, "n"] | None = None
) -> Learnable:
    """What data at `x` would teach about each unknown, the others being unknown too.

    No data are needed. The directions are those of the data's information relative to the prior's.

    **Arguments:**

    - `problem`: at the values to look from, such as the best guess.
    - `weights`: how often each row of `x` is measured.

    **Raises:** `ValueError` when the information is not finite, or its noise model unknown.
    """
    data = np.asarray(data_information(problem, x, weights))
    if not np.isfinite(data).all():
        rows = sorted(set(Coordinates(problem).owner[~np.isfinite(data).all(axis=1)].tolist()))
        raise ValueError(f"the information about {rows} is not finite at the current values")
    return judged(problem, data, np.asarray(prior_information(problem)))


def judged(
    problem: InverseProblem, data: Float[np.ndarray, "d d"], prior: Float[np.ndarray, "d d"]
) -> Learnable:
    """`Learnable` of the information in data and priors; physical units at the problem's values."""
    covariance, lost, flat = _relative(data, prior)
    slope = jax.device_get(slopes(problem))
    owner, parts = Coordinates(problem).owner, []
    for direction in flat.T:
        part = {n: float(np.linalg.norm(direction[owner == n])) for n in dict.fromkeys(owner)}
        parts.append({n: p for n, p in part.items() if p > 0.1})
    own = np.where(np.diag(prior) > 0, np.diag(prior), 1.0) ** -0.5  # in each one's own unit
    before = own**2 * np.diag(np.linalg.pinv(own[:, None] * prior * own))
    before = np.where(np.diag(prior) > 0, before, np.inf)
    ratio = np.where(lost, 1.0, np.sqrt(np.diag(covariance) / before))
    sd, relative, identified = {}, {}, {}
    for n, theta in problem.unconstrain(problem.values()).items():
        variance = np.einsum("...i,ij,...j->...", slope[n], covariance, slope[n])
        sd[n] = np.where(np.any((slope[n] != 0) & lost, axis=-1), np.inf, np.sqrt(variance))
        relative[n] = ratio[owner == n].reshape(theta.shape)
        carried = any(n in direction for direction in parts)
        identified[n] = bool((relative[n] <= PRIOR_RULES).all()) and not carried
    return Learnable(sd, relative, identified, parts)


def _relative(data: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The covariance, which elements nothing bounds, and as columns the directions in which the
    data leave more than 0.9 of the prior's width, measured in prior widths if there is a prior."""
    total = np.diag(data) + np.diag(prior)
    own = np.where(total > 0, total, 1.0) ** -0.5  # so that units do not decide what is flat
    values, vectors = np.linalg.eigh(own[:, None] * (data + prior) * own)
    by_prior = np.einsum("ki,kl,li->i", vectors, own[:, None] * prior * own, vectors)
    # below rounding the data say nothing, and there is what the prior says
    precision = np.where(values > FLAT * values.max(initial=0.0), values, by_prior)
    known = precision > 0
    root = own[:, None] * vectors[:, known] / np.sqrt(precision[known])
    lost = np.abs(vectors[:, ~known]).max(axis=1, initial=0.0) > 1e-6
    share, turn = np.linalg.eigh(root.T @ prior @ root)  # of the precision that the prior brings
    lazy = root @ turn[:, share > PRIOR_RULES**2]
    flat = np.concatenate([own[:, None] * vectors[:, ~known], lazy], axis=1)
    flat = flat * np.sqrt(np.where(np.diag(prior) > 0, np.diag(prior), own**-2.0))[:, None]
    return root @ root.T, lost, flat / np.linalg.norm(flat, axis=0)


@eqx.filter_jit
def slopes(problem: InverseProblem) -> Values:
    """d value / d theta, an array `[*shape, d]` by name."""
    coordinates = Coordinates(problem)
    return jax.jacfwd(coordinates.values)(coordinates.vector())
