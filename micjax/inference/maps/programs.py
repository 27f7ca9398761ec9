"""The compiled programs of a map: blocks of pixels, `[chunk, ..., pixel of it]`.

Pixels of a chunk go side by side, as many as the cache of a CPU holds the sums of; chunks go one
after the other.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from micjax.core.problem import Values
from micjax.inference.maps.descent import Pace, begun, descended
from micjax.inference.maps.equations import Pixel
from micjax.inference.maps.status import Told, told


class Programs(NamedTuple):
    """As below, compiled."""

    flat: Callable[..., Any]
    begun: Callable[..., Pace]
    descend: Callable[..., Pace]
    better: Callable[..., Pace]
    gathered: Callable[..., Any]
    scattered: Callable[..., Pace]
    told: Callable[..., Told]


@functools.cache
def compiled() -> Programs:
    jit = functools.partial(eqx.filter_jit, compiler_options=_options())
    return Programs(
        *(jit(f) for f in (_flat, jax.vmap(begun), _descend, _better, _gathered, _scattered, _told))
    )


def _options() -> dict[str, bool]:
    """On CPUs the older way to fuse operations, which vectorises sums over several operands (jax
    0.10: five times as fast); where it is not known any more, none."""
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda a: a + 1, compiler_options=options)(jnp.zeros(1))
    except Exception:  # of a compiler that has left it behind
        return {}
    return options if jax.default_backend() == "cpu" else {}


def _flat(pixel: Pixel, known: Values, values: Values):
    """Unconstrained coordinates."""

    def of_one(known, values):
        coordinates = pixel.coordinates(known)
        return coordinates.vector(coordinates.problem.unconstrain(values))

    return jax.vmap(jax.vmap(of_one, -1, -1))(known, values)


def _descend(pixel, law, known, y, pace: Pace, chunks, most, tolerance) -> Pace:
    """The first `chunks` of them."""

    def one_chunk(i, pace):
        some = jax.tree.map(lambda a: a[i], (known, y, pace))
        moved = descended(pixel, law, *some, most, tolerance)
        return jax.tree.map(lambda a, b: a.at[i].set(b), pace, moved)

    return jax.lax.fori_loop(0, chunks, one_chunk, pace)


def _better(first: Pace, second: Pace) -> Pace:
    lower = jnp.nan_to_num(second.loss, nan=jnp.inf) < jnp.nan_to_num(first.loss, nan=jnp.inf)

    def pick(a, b):
        return jnp.where(lower[:, None] if a.ndim == 3 else lower, b, a)

    return jax.tree.map(pick, first, second)


def pixels_first(a, np=jnp):
    """[chunk, ..., pixel of it] -> [pixel, ...]"""
    return np.moveaxis(a, -1, 1).reshape(-1, *a.shape[1:-1])


def side_by_side(rows, chunk: int, np=jnp):
    """[pixel, ...] -> [chunk, ..., pixel of it]"""
    return np.moveaxis(rows.reshape(-1, chunk, *rows.shape[1:]), 1, -1)


def _gathered(tree, order):
    """The pixels `order` of each array."""

    def of(a):
        return side_by_side(pixels_first(a)[order], a.shape[-1])

    return jax.tree.map(of, tree)


def _scattered(tree, moved, order):
    """The first pixels of `moved` back in their places."""

    def of(a, b):
        rows = pixels_first(a).at[order].set(pixels_first(b)[: len(order)])
        return side_by_side(rows, a.shape[-1])

    return jax.tree.map(of, tree, moved)


def _told(pixel, law, known, y, pace: Pace, prior_sd, tolerance) -> Told:
    return jax.lax.map(lambda a: told(pixel, law, *a, prior_sd, tolerance), (known, y, pace))
