"""Several problems as one: data sets or instruments in one likelihood, what they share tied.

    -log p(y_a | theta_a, shared) - log p(y_b | theta_b, shared) - log p(theta_a, theta_b, shared)

The data of a part are `x[part]`, and its piece of `y`, the data of all parts in one row.
"""

from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.tree_util import DictKey
from jaxtyping import Array, ArrayLike, Float

from micjax.core.names import unknown_name
from micjax.core.problem import InverseProblem, check_data
from micjax.core.tree import array_of, named_leaves, replace

SHARED = "shared"


@jax.tree_util.register_pytree_with_keys_class
class JointForward:
    """The forward model of a joint problem: what each part makes of its own `x`, as a law.

    Its leaves are called as in the parts (`a.forward.u_A2`), those that are shared
    `shared.NAME`.
    """

    def __init__(self, parts: dict, shared: dict, ties: tuple, modules: tuple = ()):
        self.parts, self.shared, self.ties, self.modules = parts, shared, ties, modules

    def tree_flatten_with_keys(self):
        pairs = [(DictKey(name), part) for name, part in self.parts.items()]
        return [*pairs, (DictKey(SHARED), self.shared)], (
            tuple(self.parts),
            self.ties,
            self.modules,
        )

    @classmethod
    def tree_unflatten(cls, static, children):
        names, *others = static
        return cls(dict(zip(names, children, strict=False)), children[-1], *others)

    def __call__(self, x: Mapping) -> dict[str, dist.Distribution]:
        if not isinstance(x, Mapping) or x.keys() != self.parts.keys():
            x = x if isinstance(x, Mapping) else [type(x).__name__]
            raise ValueError(f"x of {sorted(x)}; the parts are {sorted(self.parts)}")
        laws = {}
        for name, part in self.parts.items():
            own = {leaf: self.shared[n] for n, of, leaf in self.ties if of == name}
            part = replace(part, own)
            laws[name] = part.noise(part.forward(x[name]))
        return laws


class JointNoise(eqx.Module):
    """The noise of a joint problem: the data of all parts, each of its own law."""

    def __call__(self, laws: dict[str, dist.Distribution]) -> "JointLaw":
        return JointLaw(laws)


class JointLaw(dist.Distribution):
    """Independent parts, their values in one row: raveled, one after the other."""

    support = dist.constraints.real_vector
    pytree_data_fields = ("laws",)
    pytree_aux_fields = ("names",)  # a tree sorts a dictionary; the data are in this order

    def __init__(self, laws: dict[str, dist.Distribution], validate_args=None):
        self.laws, self.names = laws, tuple(laws)
        sizes = [_size(law) for law in laws.values()]
        super().__init__((), (sum(sizes),), validate_args=validate_args)

    def _parts(self) -> list[tuple[str, dist.Distribution]]:
        return [(name, self.laws[name]) for name in self.names]

    def split(self, y: Float[Array, "... n"]) -> dict[str, Array]:
        """The pieces of the parts, in their shapes."""
        pieces, begin = {}, 0
        for name, law in self._parts():
            piece = y[..., begin : begin + _size(law)]
            pieces[name] = piece.reshape(*y.shape[:-1], *law.shape())
            begin += _size(law)
        return pieces

    def log_prob(self, value: Float[Array, "n"]) -> Float[Array, ""]:
        pieces = self.split(value)
        return sum(jnp.sum(law.log_prob(pieces[name])) for name, law in self._parts())

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "... n"]:
        keys = jax.random.split(key, len(self.laws))
        draws = [
            law.sample(k, sample_shape).reshape(*sample_shape, -1)
            for k, (_, law) in zip(keys, self._parts(), strict=True)
        ]
        return jnp.concatenate(draws, axis=-1)

    @property
    def mean(self) -> Float[Array, "n"]:
        return self._row("mean")

    @property
    def variance(self) -> Float[Array, "n"]:
        return self._row("variance")

    @property
    def largest_variance(self) -> Float[Array, "n"]:
        """Of the part that a datum is of."""
        largest = [jnp.full(_size(law), jnp.max(law.variance)) for _, law in self._parts()]
        return jnp.concatenate(largest)

    @property
    def rate(self) -> Float[Array, "n"]:
        """Of counts, where all parts count."""
        return self._row("rate")

    def _row(self, of: str) -> Float[Array, "n"]:
        return jnp.concatenate([jnp.ravel(getattr(law, of)) for _, law in self._parts()])


def joint(
    parts: Mapping[str, InverseProblem],
    shared: Mapping[str, Sequence[str]] | None = None,
    modules: Mapping[str, str] | None = None,
) -> InverseProblem:
    """One problem of several, whose unknowns are those of all.

    **Arguments:**

    - `parts`: by a name of yours.
    - `shared`: what is one unknown in several parts, `{"thickness_A": ("a.forward.thickness_A",
        "b.forward.thickness_A")}`. It starts from the value in the first of them.
    - `modules`: `{"a": "micjax.problems.cbed"}` of the parts, whose stages `micjax.problems.joint`
        begins with.

    **Returns:** a problem whose unknowns are called `forward.a.forward.u_A2` and
    `forward.shared.thickness_A`. Its data are those of `joint_data`.

    **Raises:** `ValueError` for names that are not there, or of what is no unknown, and where the
    tied unknowns differ in shape or prior.
    """
    if len(parts) < 2 or SHARED in parts or not all(n.isidentifier() for n in parts):
        raise ValueError(
            f"parts are called {list(parts)}: two or more names, none of them {SHARED!r}"
        )
    priors = {f"{n}.{k}": p for n, part in parts.items() for k, p in part.priors.items()}
    values, ties, common = {}, [], {}
    for name, leaves in (shared or {}).items():
        if not name.isidentifier():
            raise ValueError(f"shared {name!r}: a name of letters, digits and _ is wanted")
        if len(set(leaves)) < max(2, len(leaves)):
            raise ValueError(f"shared {name!r} is in {list(leaves)}: two or more parts share it")
        if missing := [leaf for leaf in leaves if leaf not in priors]:
            raise ValueError(f"shared {name!r}: " + unknown_name("unknown", missing[0], priors))
        laws = [priors.pop(leaf) for leaf in leaves]
        of, leaf = zip(*(leaf.split(".", 1) for leaf in leaves), strict=True)
        there = [array_of(named_leaves(parts[n])[k]) for n, k in zip(of, leaf, strict=True)]
        if len({jnp.shape(v) for v in there}) > 1 or not all(_alike(laws[0], p) for p in laws):
            raise ValueError(
                f"shared {name!r}: {', '.join(leaves)} differ in shape or prior; the priors of a "
                "part are changed by `problem.given({name: prior})`, in a plan by "
                "`parts.PART.priors`"
            )
        values[name], common[name] = there[0], laws[0]
        ties += [(name, n, k) for n, k in zip(of, leaf, strict=True)]
    known = {n: p.given(dict.fromkeys(p.priors)) for n, p in parts.items()}
    named = {f"forward.{n}": p for n, p in priors.items()}
    named |= {f"forward.{SHARED}.{n}": p for n, p in common.items()}
    of_modules = tuple((modules or {}).items())
    return InverseProblem(JointForward(known, values, tuple(ties), of_modules), JointNoise(), named)


def joint_data(
    problem: InverseProblem, data: Mapping[str, tuple[object, ArrayLike]]
) -> tuple[dict, Float[Array, "n"]]:
    """`{part: (x, y)}` as the (x, y) of a joint problem.

    **Raises:** `ValueError` for data of other parts, or of another shape than a part predicts.
    """
    parts = problem.forward.parts
    if data.keys() != parts.keys():
        raise ValueError(f"data of {sorted(data)}; the parts are {sorted(parts)}")
    pieces = []
    for name in parts:
        x, y = data[name]
        try:
            check_data(parts[name], x, y)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        pieces.append(jnp.ravel(jnp.asarray(y, float)))
    return {name: data[name][0] for name in parts}, jnp.concatenate(pieces)


def pieces(problem: InverseProblem, x: Mapping, y: Float[Array, "n"]) -> dict[str, Array]:
    """The data of each part of a joint problem, in their shapes."""
    law = eqx.filter_eval_shape(lambda p, x: p.noise(p.forward(x)), problem, x)
    return law.split(y)


def part(problem: InverseProblem, name: str) -> InverseProblem:
    """A part of a joint problem at the values that it has there, and with its own unknowns.

    **Raises:** `ValueError` for a part that there is not.
    """
    forward = problem.forward
    if name not in forward.parts:
        raise ValueError(unknown_name("part", name, forward.parts))
    own = {leaf: n for n, of, leaf in forward.ties if of == name}
    priors = {
        key.removeprefix(f"forward.{name}."): prior
        for key, prior in problem.priors.items()
        if key.startswith(f"forward.{name}.")
    }
    priors |= {leaf: problem.priors[f"forward.{SHARED}.{n}"] for leaf, n in own.items()}
    at = replace(forward.parts[name], {leaf: forward.shared[n] for leaf, n in own.items()})
    return at.given(priors)


def _size(law: dist.Distribution) -> int:
    size = 1
    for n in law.shape():
        size *= n
    return size


def _alike(prior: dist.Distribution, other: dist.Distribution) -> bool:
    return bool(eqx.tree_equal(prior, other))
