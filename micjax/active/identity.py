"""What an object is, in a line: to tell whether a file belongs to the experiment that reads it."""

import dataclasses
import functools
import hashlib
import re
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function or an object: another one in each process


def told_apart(value: Any) -> str | None:
    """The type of a tree of arrays, numbers and functions, and a hash of all that it holds.

    Numbers that JAX has made count to 6 digits: another precision rounds the others. Of a function
    only its name counts.
    """
    if value is None:
        return None
    # NumPyro's distributions come apart in another order in each process
    leaves, structure = jax.tree.flatten(value, lambda n: isinstance(n, dist.Distribution))
    digest = hashlib.sha256(ADDRESS.sub("", str(structure)).encode())
    for leaf in leaves:
        digest.update(_leaf(leaf).encode())
    kind = type(value).__name__
    shape = f" {np.shape(value)}" if isinstance(value, np.ndarray) else ""
    return f"{kind}{shape} {digest.hexdigest()[:16]}"


def _leaf(leaf: Any) -> str:
    if isinstance(leaf, bool | int | str | None):
        return repr(leaf)
    if isinstance(leaf, float | np.ndarray | np.generic | jax.Array):
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        values = np.asarray(leaf)
        if np.issubdtype(values.dtype, np.floating):
            digits = "%.6g" if isinstance(leaf, jax.Array) else "%.12g"
            return f"{values.shape} {np.char.mod(digits, values).tolist()}"
        return f"{values.shape} {values.tolist()}"
    if isinstance(leaf, dist.Distribution):
        names = {*leaf.arg_constraints, *leaf.pytree_data_fields, "base_dist"}
        parts = {n: told_apart(getattr(leaf, n, None)) for n in sorted(names)}
        return f"{type(leaf).__qualname__} {leaf.batch_shape} {leaf.event_shape} {parts}"
    if dataclasses.is_dataclass(leaf):  # a model need not be a tree
        parts = {f.name: told_apart(getattr(leaf, f.name)) for f in dataclasses.fields(leaf)}
        return f"{type(leaf).__qualname__} {parts}"
    if isinstance(leaf, functools.partial):
        return f"{_leaf(leaf.func)} {told_apart((leaf.args, leaf.keywords))}"
    named = leaf if hasattr(leaf, "__qualname__") else type(leaf)
    return f"{named.__module__} {named.__qualname__}"
