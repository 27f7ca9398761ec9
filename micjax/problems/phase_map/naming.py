"""Known crystals for `micjax.problems.phase_map`, from files of structures, along their axes."""

import logging
import pathlib

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.io.readers.structures import read_structure
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.projection import ZONES, projected
from micjax.physics.patches.unmixing.naming import lattice_template, likeness

log = logging.getLogger("micjax")

CLOSE = 0.02  # of a cosine: crystals that are no further apart are not told from each other


class KnownCrystals(eqx.Module):
    """Spectra of crystals along axes."""

    names: tuple[str, ...] = eqx.field(static=True)  # of the crystal
    zones: tuple[tuple[int, int, int], ...] = eqx.field(static=True)
    templates: Float[Array, "c r t"]


def candidates(path: str, polar: Polar) -> KnownCrystals:
    """Of a file, or all files of a folder, each along `ZONES`.

    **Raises:** `ValueError` for a folder without files, besides what `read_structure` raises.
    """
    place = pathlib.Path(path)
    files = sorted(p for p in place.iterdir() if p.is_file()) if place.is_dir() else [place]
    if not files:
        raise ValueError(f"structures = {path}: no files in this folder")
    names, templates = [], []
    for file in files:
        atoms = read_structure(str(file))
        of = {"occupancy": atoms.arrays.get("occupancy")}
        cell, places = np.asarray(atoms.cell), atoms.get_scaled_positions()
        for zone in ZONES:
            lattice = projected(cell, places, atoms.numbers, zone, **of)
            names.append(file.stem)
            templates.append(lattice_template(lattice, polar))
    log.info("%d structures along %d axes each", len(files), len(ZONES))
    return KnownCrystals(tuple(names), len(files) * ZONES, jnp.stack(templates))


def named(
    templates: Float[Array, "k r t"], known: KnownCrystals
) -> list[tuple[str, float, str | None]]:
    """For each template the crystal and axis it is most like, the cosine, and another crystal that
    is as much like it, if there is one."""
    names = []
    for cosines in likeness(templates, known.templates):
        best = int(np.argmax(cosines))
        name = f"{known.names[best]} [{' '.join(map(str, known.zones[best]))}]"
        others = np.array(known.names) != known.names[best]
        rival = int(np.argmax(np.where(others, cosines, -1.0)))
        close = others.any() and cosines[best] - cosines[rival] < CLOSE
        names.append((name, float(cosines[best]), known.names[rival] if close else None))
    return names
