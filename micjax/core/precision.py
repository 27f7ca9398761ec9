"""What runs in float64, whatever the precision around it."""

import functools
from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def double(function: Callable) -> Callable:
    """`function` run in float64, whatever the precision around it; inside a transformation of JAX
    in the precision of that."""

    @functools.wraps(function)
    def in_double(*args, **kwargs):
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))):
            return function(*args, **kwargs)
        with jax.enable_x64(True):
            args, kwargs = in_float64((args, kwargs))
            return function(*args, **kwargs)

    return in_double


def in_float64(tree: Tree) -> Tree:
    """`tree` with its floating arrays in float64 (complex128); needs `jax.enable_x64(True)`."""

    def cast(leaf):
        if not eqx.is_inexact_array_like(leaf) or isinstance(leaf, float | complex):
            return leaf
        return jnp.asarray(leaf, jnp.complex128 if jnp.iscomplexobj(leaf) else jnp.float64)

    return jax.tree.map(cast, tree)
