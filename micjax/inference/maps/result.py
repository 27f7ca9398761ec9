"""What a map of fits leads to."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from micjax.core.problem import InverseProblem, Values
from micjax.inference.maps.rows import inside
from micjax.inference.maps.status import STATUS, UNUSABLE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MapFit:
    """Fits of all pixels of a map; every array begins with the axes of the map.

    - `values`, `sd`: physical values and standard deviations, by name; NaN without data.
    - `status`: which of `micjax.inference.maps.status.STATUS`.
    - `loss`: -log posterior but for a constant. `chi_squared` of `points` data.
    - `bound`, `identified`: by name, whether it is at an end of its prior; whether the data say
        anything about it.
    - `steps`: that were taken.
    - `correlated`: of neighbouring residuals, in standard deviations of independent noise: above 4
        the model leaves something out. `excess`: of chi^2, in its standard deviations.
    - `covariance`: `[*map, k, k]` of all physical values, in the order of `values`, where it was
        asked for.
    - `grown`: by how much the error of one of the values was made larger at most, because the
        residuals of all pixels together are not the noise that the model says. None: they are.
    """

    values: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    status: Int[np.ndarray, "..."]
    loss: Float[np.ndarray, "..."]
    chi_squared: Float[np.ndarray, "..."]
    points: Int[np.ndarray, "..."]
    bound: dict[str, np.ndarray]
    identified: dict[str, np.ndarray]
    steps: Int[np.ndarray, "..."]
    correlated: Float[np.ndarray, "..."]
    excess: Float[np.ndarray, "..."]
    covariance: Float[np.ndarray, "... k k"] | None = None
    grown: Float[np.ndarray, "..."] | None = None

    @classmethod
    def of_rows(cls, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> "MapFit":
        """From arrays `[pixel, ...]`, those of an unknown called "values NAME" and so on."""
        fields = {f.name for f in dataclasses.fields(cls)}
        groups: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            field, _, unknown = name.partition(" ")
            if field in fields:
                groups.setdefault(field, {})[unknown] = array.reshape(shape + array.shape[1:])
        return cls(**{f: g.get("", g) for f, g in groups.items()})

    def rows(self) -> dict[str, np.ndarray]:
        """The arrays that `of_rows` takes."""
        out, rank = {}, self.status.ndim
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                out |= {f"{field.name} {n}": a for n, a in value.items()}
            elif value is not None:
                out[field.name] = value
        return {n: a.reshape(-1, *a.shape[rank:]) for n, a in out.items()}

    def usable(self) -> Bool[np.ndarray, "..."]:
        """Whether there are values."""
        return ~np.isin(self.status, [STATUS.index(s) for s in UNUSABLE])

    def counts(self) -> dict[str, int]:
        """How many pixels have each status."""
        return {s: int(np.sum(self.status == i)) for i, s in enumerate(STATUS)}

    def log_evidence(self) -> Float[np.ndarray, "..."]:
        """log p(data) of the model, but for what the data alone decide: the posterior as a Gaussian
        (Laplace; MacKay 2003, ch. 27). Only fits to the same data can be compared; minus infinity
        where there is no fit.

        **Raises:** `ValueError` without `covariance`.
        """
        if self.covariance is None:
            raise ValueError("there is no covariance: it is kept where it is asked for")
        covariance = np.where(np.isfinite(self.covariance), self.covariance, 0.0).astype(float)
        variance = np.maximum(np.einsum("...ii->...i", covariance), 1e-300)
        root = np.sqrt(variance)
        alike = np.linalg.eigvalsh(covariance / root[..., None] / root[..., None, :])
        volume = np.log(variance).sum(axis=-1) + np.log(np.maximum(alike, 1e-12)).sum(axis=-1)
        d = variance.shape[-1]
        value = 0.5 * volume + 0.5 * d * np.log(2.0 * np.pi) - self.loss
        return np.where(self.usable() & np.isfinite(value), value, -np.inf)

    def derived(
        self, function: Callable[[Values], dict[str, Array]]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What follows from the values of a pixel, and its standard deviations, to first order.

        **Arguments:**

        - `function`: of the values of one pixel, by name.

        **Raises:** `ValueError` without `covariance`.
        """
        if self.covariance is None:
            raise ValueError("there is no covariance: it is kept where it is asked for")
        shape, kept = self.status.shape, self.covariance.shape[-1]
        flat = {n: v.reshape(-1, *v.shape[len(shape) :]) for n, v in self.values.items()}
        values, sd = _derived(function, flat, self.covariance.reshape(-1, kept, kept))
        both = ({n: np.asarray(v) for n, v in d.items()} for d in (values, sd))
        values, sd = ({n: v.reshape(shape + v.shape[1:]) for n, v in d.items()} for d in both)
        return values, sd


@eqx.filter_jit
def _derived(function, values, covariance):
    def of_one(values, covariance):
        slopes = jax.jacfwd(function)(values)

        def spread(of: Values) -> Array:
            size = {n: max(jnp.size(v), 1) for n, v in values.items()}
            row = jnp.concatenate(
                [
                    s.reshape(*s.shape[: s.ndim - jnp.ndim(values[n])], size[n])
                    for n, s in of.items()
                ],
                axis=-1,
            )
            return jnp.sqrt(jnp.einsum("...i,ij,...j->...", row, covariance, row))

        return function(values), {n: spread(of) for n, of in slopes.items()}

    return jax.vmap(of_one)(values, covariance)


def from_neighbours(problem: InverseProblem, fit: MapFit) -> dict[str, np.ndarray]:
    """For each pixel the values of that neighbour along an axis whose misfit is least; where these
    are no place to start from, the problem's own."""
    shape = fit.status.shape
    misfit = np.where(fit.usable(), fit.chi_squared / np.maximum(fit.points, 1), np.inf)
    index = np.arange(fit.status.size).reshape(shape)
    best, least = index.copy(), np.full(shape, np.inf)
    for axis, length in enumerate(shape):
        for step in (-1, 1):
            there = np.clip(np.arange(length) + step, 0, length - 1)
            theirs = np.take(misfit, there, axis)
            closer = (theirs < least) & (np.take(index, there, axis) != index)
            best = np.where(closer, np.take(index, there, axis), best)
            least = np.where(closer, theirs, least)
    rows = best.ravel()
    own, unknowns, out = problem.values(), problem.unknowns(), {}
    for name, values in fit.values.items():
        theirs = values.reshape(-1, *values.shape[len(shape) :])[rows]
        allowed = np.asarray(inside(unknowns[name], jnp.asarray(theirs)))
        allowed = allowed.reshape(-1, *[1] * (theirs.ndim - 1))
        out[name] = np.where(allowed, theirs, np.asarray(own[name])).reshape(values.shape)
    return out


def most_likely(
    fits: Sequence[MapFit], copies: Sequence[int] | None = None
) -> tuple[Int[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Which of several models explains each pixel, and how sure that is.

    **Arguments:**

    - `fits`: of these models to the same data, with `covariance`.
    - `copies`: in how many ways each can be written: k! for k peaks that may change places.

    **Returns:** the index of the most likely model of each pixel, -1 where none has a fit, and its
    probability among them, all as likely beforehand. A pixel below 0.9 is ambiguous.

    **Raises:** `ValueError` for fits of other maps, another number of `copies`, no covariance.
    """
    copies = [1] * len(fits) if copies is None else list(copies)
    shapes = {fit.status.shape for fit in fits}
    if len(shapes) != 1 or len(copies) != len(fits):
        raise ValueError(
            f"{len(fits)} fits, of maps of {sorted(shapes)}, and {len(copies)} numbers of copies: "
            "fits of one map, and a number for each, are needed"
        )
    logs = np.stack([f.log_evidence() + np.log(c) for f, c in zip(fits, copies, strict=True)])
    largest = logs.max(axis=0)
    there = np.isfinite(largest)
    weights = np.exp(logs - np.where(there, largest, 0.0))
    probability = weights.max(axis=0) / np.where(there, weights.sum(axis=0), 1.0)
    return np.where(there, logs.argmax(axis=0), -1), np.where(there, probability, np.nan)
