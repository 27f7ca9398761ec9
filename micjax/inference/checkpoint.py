"""The state of a fit in a file, from which it goes on bit for bit."""

import logging
import pathlib

import equinox as eqx
import h5py
import jax
import numpy as np

from micjax.core.hdf5 import opened
from micjax.inference.result import Path, write_atomically

log = logging.getLogger("micjax")
FORMAT = "micjax checkpoint 1"


def save_checkpoint(path: Path, carry, history: list[np.ndarray], solver) -> None:
    """Write `carry` and the losses. A failure is a warning: the fit is worth more than the file."""

    def write(file: h5py.File) -> None:
        file.attrs.update(format=FORMAT, solver=_name(solver))
        file["losses"] = np.concatenate(history)
        for i, (name, leaf) in enumerate(_arrays(carry).items()):
            file[f"carry/{i}"] = np.asarray(_raw(leaf))
            file[f"carry/{i}"].attrs["name"] = name

    try:
        write_atomically(path, write)
    except OSError as error:
        log.warning("checkpoint %s was not written: %s", path, error)


def load_checkpoint(path: Path, carry, history: list[np.ndarray], solver):
    """`carry` and `history` as they were saved; unchanged if there is no file yet.

    **Raises:** `ValueError` when the file is of another problem, solver or number of starts.
    """
    if not pathlib.Path(path).exists():
        return carry, history
    try:
        with opened(path) as file:
            attributes = {name: file.root.text(name) for name in ("format", "solver")}
            losses = file.array("losses")
            numbered = file.arrays("carry")
            found = {str(file.get(f"carry/{i}").attrs["name"]): a for i, a in numbered.items()}
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a micjax checkpoint: {error}") from error
    wanted = _arrays(carry)
    if wrong := _differences(attributes, found, solver, wanted):
        raise ValueError(f"{path} is the checkpoint of another fit: {wrong}")
    arrays = [_like(found[name], leaf) for name, leaf in wanted.items()]
    dynamic, static = eqx.partition(carry, eqx.is_array)
    dynamic = jax.tree.unflatten(jax.tree.structure(dynamic), arrays)
    return eqx.combine(dynamic, static), [losses]


def _differences(attributes, found, solver, wanted) -> str:
    lines = []
    if attributes.get("format") != FORMAT:
        lines.append(f"format {attributes.get('format')!r} instead of {FORMAT!r}")
    if attributes.get("solver") != _name(solver):
        lines.append(f"solver {attributes.get('solver')!r} instead of {_name(solver)!r}")
    lines += [f"{n} is missing" for n in wanted if n not in found]
    lines += [f"{n} is not in this fit" for n in found if n not in wanted]
    for n in wanted.keys() & found.keys():
        new, old = _raw(wanted[n]), found[n]
        if (new.shape, new.dtype) != (old.shape, old.dtype):
            lines.append(f"{n} is {old.dtype}{old.shape} instead of {new.dtype}{new.shape}")
    return "; ".join(lines)


def _arrays(carry) -> dict[str, jax.Array]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(carry, eqx.is_array))
    return {jax.tree_util.keystr(path): leaf for path, leaf in pairs}


def _name(solver) -> str:
    # an optax transformation has no name of its own; its state in the carry tells it apart
    return type(solver).__name__


def _raw(leaf: jax.Array) -> jax.Array:
    keys = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if keys else leaf


def _like(saved: np.ndarray, leaf: jax.Array) -> jax.Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(saved, impl=jax.random.key_impl(leaf))
    return jax.numpy.asarray(saved)
