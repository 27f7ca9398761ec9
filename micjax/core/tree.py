"""Names of the leaves of a model: Equinox modules outside, Flax NNX networks inside.

A name is the dotted path of a leaf, `"tip.radius_nm"` or `"surface.layers.0.kernel"`. An
`nnx.Variable` is one leaf. This is the only file that knows how Flax stores a parameter.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
from flax import nnx
from jaxtyping import Array, PyTree


def _dotted(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def named_leaves(tree: PyTree) -> dict[str, object]:
    """Every leaf of `tree` by its dotted name, in tree order."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    return {_dotted(path): leaf for path, leaf in pairs}


def array_of(leaf) -> Any:
    """What is in a leaf (mostly an array), taken out of its Flax variable if it sits in one."""
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def replace(tree: PyTree, values: Mapping[str, Array]) -> PyTree:
    """A new tree with the named leaves replaced; `tree` stays as it is.

    **Raises:** `ValueError` for a name that is no leaf.
    """
    pairs, structure = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    names = [_dotted(path) for path, _ in pairs]
    if missing := sorted(set(values) - set(names)):
        raise ValueError(f"no such leaves: {missing}; there are {names}")

    def new(name, leaf):
        if name not in values:
            return leaf
        return leaf.replace(values[name]) if isinstance(leaf, nnx.Variable) else values[name]

    return jax.tree.unflatten(
        structure, [new(n, leaf) for n, (_, leaf) in zip(names, pairs, strict=True)]
    )


def parameters_under(tree: PyTree, names: Iterable[str]) -> dict[str, list[str]]:
    """The leaves that each name frees: a float array -> itself; a Flax network or a part of one ->
    its `nnx.Param`s. An Equinox subtree frees nothing, so that naming `"tip"` can never free
    the pixel size by accident."""
    nodes, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, nnx.Module | nnx.Variable)
    )
    networks = [_dotted(path) + "." for path, node in nodes if isinstance(node, nnx.Module)]
    leaves = named_leaves(tree)

    def under(name):
        if any((name + ".").startswith(network) for network in networks):
            inside = name + "."
            return [
                n
                for n, leaf in leaves.items()
                if isinstance(leaf, nnx.Param) and (n + ".").startswith(inside)
            ]
        return [name] if eqx.is_inexact_array(leaves.get(name)) else []

    return {name: under(name) for name in names}
