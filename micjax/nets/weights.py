"""Trained networks as files: the architecture by name, its weights by name, what they are for."""

import json
import logging
import os
import pathlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import ArrayLike

from micjax.core.files import write_atomically
from micjax.core.foreign.hdf5 import Damaged, opened
from micjax.core.names import unknown_name
from micjax.core.plain import dumps
from micjax.core.ranges import check_ranges
from micjax.core.tree import replace
from micjax.nets.encoder import ImageEncoder
from micjax.nets.train import weights_of
from micjax.nets.unet import UNet

log = logging.getLogger("micjax")

FORMAT = "micjax network 1"
PIXEL_NM = {"pixel_nm": 1.0, "pixel_A": 0.1}  # facts that state one, in nm
ALIKE = 2.0  # pixels that differ by less are the same to a network
ARCHITECTURES: dict[str, type[nnx.Module]] = {"UNet": UNet, "ImageEncoder": ImageEncoder}


class Network(NamedTuple):
    """A network out of a file."""

    network: nnx.Module
    architecture: str
    options: dict[str, Any]  # it was made with
    facts: dict[str, Any]  # what it was trained for, and how


def save_network(
    path: str | os.PathLike,
    network: nnx.Module,
    options: Mapping[str, Any],
    facts: Mapping[str, Any],
    dtype: str = "float32",
) -> None:
    """Write the weights of `network`, an `ARCHITECTURES` made with `options`.

    **Arguments:**

    - `facts`: of kinds that JSON knows, such as the pixel size of what it was trained on.
    - `dtype`: `float16` halves the file, at a relative error of 5e-4.

    **Raises:** `ValueError` for another dtype, weights that are not finite in it, or a network that
    is none of `ARCHITECTURES`; `OSError` when it cannot be written.
    """
    check_architecture(network)
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype = {dtype!r}: float32 or float16 is needed")
    with np.errstate(over="ignore"):
        weights = {n: np.asarray(a, dtype) for n, a in weights_of(network).items()}
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise ValueError(f"weights {name} are not finite as {dtype}")
    header = {
        "format": FORMAT,
        "architecture": type(network).__name__,
        "options": json.dumps(dict(options)),
        "facts": dumps(facts),
        "versions": json.dumps({n: version(n) for n in ("micjax", "jax", "flax")}),
    }

    def write(file) -> None:
        file.attrs.update(header)
        for i, (name, array) in enumerate(weights.items()):
            file[f"weights/{i}"] = array
            file[f"weights/{i}"].attrs["name"] = name

    write_atomically(path, write)


def check_architecture(network: nnx.Module) -> None:
    """**Raises:** `ValueError` for a network that a file could not name."""
    if type(network) not in ARCHITECTURES.values():
        raise ValueError(
            f"a {type(network).__name__} cannot be kept in a file of micjax: one of "
            f"{', '.join(ARCHITECTURES)} is needed"
        )


def load_network(path: str | os.PathLike) -> Network:
    """What `save_network` wrote.

    **Raises:** `FileNotFoundError`; `ValueError` for another file, an architecture that is not one
    of `ARCHITECTURES`, or weights that are not those of it.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no such network: {path}")
    try:
        with opened(path) as file:
            if file.root.text("format") != FORMAT:
                raise ValueError(f"{path} is no network of micjax (no format {FORMAT!r})")
            architecture = file.root.text("architecture")
            options, facts = (json.loads(file.root.text(n)) for n in ("options", "facts"))
            numbered = file.arrays("weights")
            saved = {file.get(f"weights/{i}").attrs["name"]: a for i, a in numbered.items()}
    except (Damaged, KeyError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no network of micjax: {error}") from error
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{path}: {unknown_name('architecture', architecture, ARCHITECTURES)}")
    check_ranges("options", options, where=f"{path}: ")
    try:
        network = ARCHITECTURES[architecture](**options, rngs=nnx.Rngs(0))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: no {architecture} of {options}: {error}") from error
    wanted = weights_of(network)
    for name in sorted(set(wanted) ^ set(saved)):
        where = "is missing" if name in wanted else f"is no weight of {architecture}"
        raise ValueError(f"{path}: {name} {where}")
    for name, array in wanted.items():
        if saved[name].shape != array.shape:
            raise ValueError(f"{path}: {name} of shape {saved[name].shape}, not {array.shape}")
        if not np.isfinite(saved[name]).all():
            raise ValueError(f"{path}: weights {name} are not finite")
    weights = {n: jax.device_put(a.astype(wanted[n].dtype)) for n, a in saved.items()}
    return Network(replace(network, weights), architecture, options, facts)


def warn_of_pixels(path: str | os.PathLike, network: Network, pixel_nm: ArrayLike | None) -> None:
    """Tell in the log of pixels at most half as large, or at least twice, as those that the file
    says the network has learned from; a file may say nothing of them.

    **Arguments:**

    - `pixel_nm`: of what the network is to see, one number or one an axis; None: not known.

    **Raises:** `ValueError` for a size in the file that is none.
    """
    for name, unit_nm in PIXEL_NM.items():
        told = network.facts.get(name)
        if told is None:
            continue
        if isinstance(told, bool) or not isinstance(told, int | float) or not 0 < told < np.inf:
            raise ValueError(f"{path}: {name} is {told!r}, a positive number is needed")
        if pixel_nm is None:
            continue
        pixels, learned = np.ravel(np.asarray(pixel_nm, float)), told * unit_nm
        ratio = pixels / learned
        if np.any((ratio <= 1.0 / ALIKE) | (ratio >= ALIKE)):
            here = " x ".join(dict.fromkeys(f"{p:.3g}" for p in pixels))  # of squares one edge
            log.warning(
                "%s has learned from pixels of %.3g nm, these are of %s nm", path, learned, here
            )
