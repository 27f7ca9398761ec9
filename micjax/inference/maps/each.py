"""A whole map as one inverse problem: that of a pixel, with its unknowns at each pixel."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Num

from micjax.core.problem import InverseProblem, Values
from micjax.core.tree import array_of, named_leaves, replace


class EachPixel(eqx.Module):
    """The forward model of a pixel at each pixel of a map: predictions `[*map, *datum]`.

    **Arguments:**

    - `pixel`: the model; of its leaves those in `each` are `[*map, *leaf]`.
    - `each`: names of leaves which every pixel has its own of.
    - `shape`: of the map.
    - `pixel_nm`: edges of a pixel along its axes, if they are known.
    - `axis`: name and unit of what a pixel was measured along.
    """

    pixel: Any
    each: tuple[str, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    pixel_nm: tuple[float, ...] | None = eqx.field(static=True, default=None)
    axis: tuple[str, str] = eqx.field(static=True, default=("x", ""))

    def __call__(self, x) -> Float[Array, "..."]:
        def of_one(own: Values):
            return replace(self.pixel, own)(x)

        leaves, rank = named_leaves(self.pixel), len(self.shape)
        own = {n: array_of(leaves[n]) for n in self.each}
        flat = {n: a.reshape(math.prod(self.shape), *a.shape[rank:]) for n, a in own.items()}
        y = jax.vmap(of_one)(flat)
        return y.reshape(*self.shape, *y.shape[1:])


class EachNoise(eqx.Module):
    """The noise of a pixel at each pixel of a map. Data that are NaN are none."""

    pixel: Any
    each: tuple[str, ...] = eqx.field(static=True)
    rank: int = eqx.field(static=True)  # of the map

    def __call__(self, prediction: Float[Array, "..."]) -> "SeenOnly":
        leaves = named_leaves(self.pixel)
        datum = (1,) * (prediction.ndim - self.rank)
        own = {n: array_of(leaves[n]) for n in self.each}
        own = {n: a.reshape(a.shape[: self.rank] + datum) for n, a in own.items()}
        return SeenOnly(replace(self.pixel, own)(prediction))


class SeenOnly(dist.Distribution):
    """Another law, but that what is NaN of the data does not count."""

    support = dist.constraints.real
    pytree_data_fields = ("law",)

    def __init__(self, law: dist.Distribution, validate_args=None):
        self.law = law
        super().__init__(law.batch_shape, law.event_shape, validate_args=validate_args)

    def log_prob(self, value: ArrayLike) -> Float[Array, "..."]:
        seen = ~jnp.isnan(value)
        return jnp.where(seen, self.law.log_prob(jnp.where(seen, value, self.law.mean)), 0.0)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Num[Array, "..."]:
        return self.law.sample(key, sample_shape)

    @property
    def mean(self) -> Float[Array, "..."]:
        return self.law.mean

    @property
    def variance(self) -> Float[Array, "..."]:
        return self.law.variance


def each_pixel(
    problem: InverseProblem,
    shape: tuple[int, ...],
    pixel_nm: float | Sequence[float] | None = None,
    axis: tuple[str, str] = ("x", ""),
    known: Mapping[str, ArrayLike] | None = None,
) -> InverseProblem:
    """The problem of a map of this shape, of which each pixel has the unknowns of `problem`.

    What was `forward.centre` is `forward.pixel.centre`, an array of the shape of the map; what is
    known is the same for all pixels. A stage `fit_each_pixel` solves it.

    **Arguments:**

    - `pixel_nm`: edge of a pixel, or one for each axis, if it is known.
    - `axis`: name and unit of what a pixel was measured along.
    - `known`: what is known and other for each pixel, by its names, `[*map, ...]`.

    **Raises:** `ValueError` for an unknown network, noise that is not one number, no pixels, and
    another number of edges.
    """
    if min(shape, default=0) < 1:
        raise ValueError(f"a map of shape {shape} has no pixels")
    if pixel_nm is not None and np.size(pixel_nm) not in (1, len(shape)):
        raise ValueError(f"pixel_nm = {pixel_nm}: one number, or {len(shape)}, are needed")
    values = problem.values()
    if strange := sorted(set(problem.priors) - set(values)):
        raise ValueError(f"{strange}: networks, of which a map has one and not one for each pixel")
    if wide := [n for n, v in values.items() if n.startswith("noise.") and v.ndim]:
        raise ValueError(f"{wide}: the noise of a pixel has one number, not an array")
    spread = {n: jnp.broadcast_to(v, (*shape, *v.shape)) for n, v in values.items()}
    spread |= {n: jnp.asarray(v, float) for n, v in (known or {}).items()}
    at = problem.at(spread)

    edges = pixel_nm
    if pixel_nm is not None:
        edges = tuple(float(e) for e in np.broadcast_to(pixel_nm, len(shape)))

    def of(room: str) -> tuple[str, ...]:
        return tuple(n.removeprefix(f"{room}.") for n in spread if n.startswith(f"{room}."))

    return InverseProblem(
        EachPixel(at.forward, of("forward"), tuple(shape), edges, axis),
        EachNoise(at.noise, of("noise"), len(shape)),
        {map_name(n): prior for n, prior in problem.priors.items()},
    )


def some_rows(problem: InverseProblem, first: int, last: int) -> InverseProblem:
    """The problem of these rows of a map, with their values."""
    forward, noise = problem.forward, problem.noise

    def cut(model, each: tuple[str, ...]):
        leaves = named_leaves(model)
        return replace(model, {n: array_of(leaves[n])[first:last] for n in each})

    forward = EachPixel(
        cut(forward.pixel, forward.each),
        forward.each,
        (last - first, *forward.shape[1:]),
        forward.pixel_nm,
        forward.axis,
    )
    noise = EachNoise(cut(noise.pixel, noise.each), noise.each, noise.rank)
    return InverseProblem(forward, noise, problem.priors)


def one_pixel(problem: InverseProblem) -> tuple[InverseProblem, Values]:
    """The problem of a pixel, from that of `each_pixel`; and what is known and other for each of
    them, by its names.

    **Raises:** `ValueError` for another problem, and an unknown that pixels share.
    """
    forward, noise = problem.forward, problem.noise
    if not isinstance(forward, EachPixel) or not isinstance(noise, EachNoise):
        raise ValueError("the problem is none of each_pixel")
    model = {"forward": forward.pixel, "noise": noise.pixel}
    names = [f"forward.{n}" for n in forward.each] + [f"noise.{n}" for n in noise.each]
    priors = {pixel_name(n): prior for n, prior in problem.priors.items()}
    if shared := sorted(set(priors) - set(names)):
        raise ValueError(f"{shared}: unknowns that all pixels share, which this fit has not")
    own = {n: array_of(named_leaves(model)[n]) for n in names}
    model = replace(model, {n: a[(0,) * len(forward.shape)] for n, a in own.items()})
    pixel = InverseProblem(model["forward"], model["noise"], priors)
    return pixel, {n: a for n, a in own.items() if n not in priors}


def map_name(name: str) -> str:
    """`forward.centre` of a pixel in the problem of its map."""
    room, _, rest = name.partition(".")
    return f"{room}.pixel.{rest}"


def pixel_name(name: str) -> str:
    """The other way round."""
    return name.replace(".pixel.", ".", 1)
