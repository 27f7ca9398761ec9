"""The inverse problem: y ~ noise(forward(x)), unknowns ~ priors.

An `InverseProblem` does not say how it is solved. `neg_log_joint` is the one objective; every
engine minimises, samples or linearises it. `(x, y)` is everywhere the same pair: `x` is where and
with which settings one measured, `y` is what came back.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Bool, Float

from micjax.core.names import unknown_name
from micjax.core.tree import array_of, named_leaves, parameters_under, replace

Values = dict[str, Array]  # physical values by name, {"forward.tip.radius_nm": 15.0}
Theta = dict[str, Array]  # the same unknowns in unconstrained coordinates


def parameter(**kwargs):
    """A module field held as a float array of the default precision.

    Never a Python float (each value would compile anew) and never weakly typed (a second
    compilation when it is replaced by a computed value).
    """
    return eqx.field(converter=lambda v: jnp.asarray(v, dtype=float), **kwargs)


def free(constraint: dist.constraints.Constraint = dist.constraints.real) -> dist.Distribution:
    """Flat improper prior: unknown, and free within `constraint`."""
    return dist.ImproperUniform(constraint, (), ())


def _as_arrays(priors: Mapping[str, dist.Distribution]) -> dict[str, dist.Distribution]:
    # hyperparameters as Python floats would be part of the compiled program
    return jax.tree.map(lambda a: jnp.asarray(a, dtype=float), dict(priors))


class InverseProblem(eqx.Module):
    """A forward model, a noise model, and the priors of what is unknown in them.

    **Arguments:**

    - `forward`: `forward(x) -> prediction`, a callable PyTree; usually an Equinox module, which
        may hold Flax NNX networks.
    - `noise`: `noise(prediction) -> numpyro distribution` of the data; a callable PyTree.
    - `priors`: `{name: distribution}`. A name is a dotted path in the problem
        (`"forward.tip.radius_nm"`, `"noise.sigma"`) to a float array, or to a Flax network, which
        stands for all its parameters. What is not named is known.

    **Raises:** `ValueError` when a name stands for nothing (the nearest names are given), when two
    names claim one leaf, or when a prior does not fit the shape of its leaf.
    """

    forward: Callable[..., Array]
    noise: Callable[[Array], dist.Distribution]
    priors: dict[str, dist.Distribution] = eqx.field(converter=_as_arrays)

    def __check_init__(self):
        owner: dict[str, str] = {}
        leaves = named_leaves(self._model())
        for key, names in parameters_under(self._model(), self.priors).items():
            prior = self.priors[key]
            if not names:
                known = [n for n, leaf in leaves.items() if eqx.is_inexact_array(array_of(leaf))]
                raise ValueError("prior: " + unknown_name("float array or network", key, known))
            for name in names:
                if name in owner:
                    raise ValueError(f"{name!r} has two priors: {owner[name]!r} and {key!r}")
                owner[name] = key
                if prior.support.is_discrete:
                    raise ValueError(
                        f"prior {key!r} is a {type(prior).__name__}, of whole numbers: no gradient "
                        "leads from one to the next; give a continuous one"
                    )
                _fitted(prior, jnp.shape(array_of(leaves[name])), key)

    def unknowns(self) -> dict[str, dist.Distribution]:
        """The prior of each unknown leaf, in the leaf's own shape."""
        leaves = named_leaves(self._model())
        return {
            name: _fitted(self.priors[key], jnp.shape(array_of(leaves[name])), key)
            for key, names in parameters_under(self._model(), self.priors).items()
            for name in names
        }

    def values(self) -> Values:
        """The current physical value of each unknown, by name."""
        leaves = named_leaves(self._model())
        return {name: array_of(leaves[name]) for name in self.unknowns()}

    def _model(self) -> dict[str, Any]:
        """What unknowns are leaves of: to walk through the priors as well takes as long again."""
        return {"forward": self.forward, "noise": self.noise}

    def at(self, values: Mapping[str, ArrayLike]) -> "InverseProblem":
        """The same problem with these physical values (of any float leaf, by name)."""
        return replace(self, {n: jnp.asarray(v, dtype=float) for n, v in values.items()})

    def given(self, priors: Mapping[str, dist.Distribution | None]) -> "InverseProblem":
        """The same problem with some priors changed or added; `None` makes an unknown known."""
        kept = {**self.priors, **priors}
        return InverseProblem(
            self.forward, self.noise, {n: p for n, p in kept.items() if p is not None}
        )

    def constrain(self, theta: Theta) -> Values:
        return {n: dist.biject_to(p.support)(theta[n]) for n, p in self.unknowns().items()}

    def unconstrain(self, values: Mapping[str, ArrayLike]) -> Theta:
        return {n: dist.biject_to(p.support).inv(values[n]) for n, p in self.unknowns().items()}


def _fitted(prior: dist.Distribution, shape: tuple[int, ...], key: str) -> dist.Distribution:
    """`prior` as a distribution whose event is the whole leaf."""
    events = len(prior.event_shape)
    batch, event = shape[: len(shape) - events], shape[len(shape) - events :]
    if prior.event_shape != event or len(prior.batch_shape) > len(batch):
        raise ValueError(
            f"prior {key!r} is of shape {prior.batch_shape + prior.event_shape}, "
            f"its parameter of shape {shape}"
        )
    try:
        return prior.expand(batch).to_event(len(batch))
    except ValueError as error:
        raise ValueError(
            f"prior {key!r} of batch shape {prior.batch_shape} does not broadcast to {batch}"
        ) from error


def log_likelihood(problem: InverseProblem, x, y) -> Float[Array, ""]:
    """log p(y | x) at the current values."""
    return problem.noise(problem.forward(x)).log_prob(y).sum()


def neg_log_joint(theta: Theta, problem: InverseProblem, x, y) -> Float[Array, ""]:
    """-log p(y | theta, x) - log p(theta), a density over *physical* values: its minimum is MAP."""
    values = problem.constrain(theta)
    log_prior = sum(p.log_prob(values[n]) for n, p in problem.unknowns().items())
    return -log_prior - log_likelihood(problem.at(values), x, y)


@eqx.filter_jit
def drawn_data(problem: InverseProblem, x, key: Array) -> Array:
    """Data as they are expected at the current values, with their noise; as one program."""
    return problem.noise(problem.forward(x)).sample(key)


def check_data(problem: InverseProblem, x, y) -> None:
    """That there are data, that they are real numbers, and that they are of the shape which the
    model predicts: another one would be broadcast, and fitted.

    **Raises:** `ValueError`.
    """
    for leaf in jax.tree.leaves(y):
        if np.ma.is_masked(leaf):
            raise ValueError("the data are masked, which a fit does not look at: leave them out")
        kind = getattr(leaf, "dtype", None)
        if (
            kind is not None
            and not (jnp.issubdtype(kind, jnp.number) or jnp.issubdtype(kind, jnp.bool_))
            or jnp.iscomplexobj(leaf)
        ):
            raise ValueError(f"the data are of type {kind}; real numbers are needed")
    if not all(jnp.size(leaf) for leaf in jax.tree.leaves(y)) or not jax.tree.leaves(y):
        raise ValueError("there are no data: y is empty")
    law = eqx.filter_eval_shape(lambda p, x: p.noise(p.forward(x)), problem, x)
    expected = tuple(law.batch_shape) + tuple(law.event_shape)
    if jnp.shape(y) != expected:
        raise ValueError(f"the data have the shape {jnp.shape(y)}, the prediction {expected}")


def on_edge(prior: dist.Distribution, value: ArrayLike) -> Bool[Array, "..."]:
    """Which elements lie on an end of what the prior allows: in unconstrained coordinates that is
    infinitely far, and no gradient leads away from it."""
    support = prior.support
    while not hasattr(support, "lower_bound") and hasattr(support, "base_constraint"):
        support = support.base_constraint
    low = getattr(support, "lower_bound", -jnp.inf)
    high = getattr(support, "upper_bound", jnp.inf)
    return (value <= low) | (value >= high)


@eqx.filter_jit
def _outside(prior: dist.Distribution, value: Array) -> tuple[Array, Array]:
    """Whether any element lies outside of what the prior allows, and whether on its edge."""
    allowed = prior.support(value)
    # what is not finite is told with the density, where a fit or a chain begins
    outside = jnp.all(jnp.isfinite(value)) & ~jnp.all(allowed)
    return outside, jnp.any(on_edge(prior, value) & allowed)


def check_start(problem: InverseProblem, values: Mapping[str, ArrayLike]) -> None:
    """**Raises:** `ValueError` for values on the edge of their prior, or outside of it."""
    for name, prior in problem.unknowns().items():
        value = jnp.asarray(values[name])
        outside, edge = _outside(prior, value)
        if outside:
            raise ValueError(
                f"{name} starts at {jnp.ravel(value)[:3].tolist()}, outside of what its prior "
                f"allows ({prior.support})"
            )
        if edge:
            raise ValueError(
                f"{name} starts on the edge of what its prior allows ({prior.support}); "
                "start inside it"
            )
