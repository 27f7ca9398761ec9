"""Known crystals for `micjax.problems.phase_map`, from files of structures, along their axes."""

import logging
import pathlib
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.io.readers.structures import read_structure
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.projection import ZONES, projected
from micjax.physics.patches.unmixing.naming import Pattern, compared, pattern

log = logging.getLogger("micjax")

# of the power of its reflections, of which a crystal that is another one predicts less
LEAST_AGREEMENT = 0.5
UNLIKELY = 0.05  # probability of a crystal that is no rival


class KnownCrystals(eqx.Module):
    """What crystals along axes predict."""

    names: tuple[str, ...] = eqx.field(static=True)  # of the crystal
    zones: tuple[tuple[int, int, int], ...] = eqx.field(static=True)
    patterns: Pattern


class Name(NamedTuple):
    """The crystal that a template is most likely of."""

    crystal: str
    zone: tuple[int, int, int]
    probability: float  # among the crystals that are known
    agreement: float  # the part of the power of reflections that it predicts
    rivals: tuple[str, ...]  # other crystals that are not unlikely

    def __str__(self) -> str:
        return f"{self.crystal} [{' '.join(map(str, self.zone))}]"


def candidates(path: str, polar: Polar) -> KnownCrystals:
    """Of a file, or all files of a folder, each along `ZONES`.

    **Raises:** `ValueError` for a folder without files, besides what `read_structure` raises.
    """
    place = pathlib.Path(path)
    files = sorted(p for p in place.iterdir() if p.is_file()) if place.is_dir() else [place]
    if not files:
        raise ValueError(f"structures = {path}: no files in this folder")
    names, patterns = [], []
    for file in files:
        atoms = read_structure(str(file))
        of = {"occupancy": atoms.arrays.get("occupancy")}
        cell, places = np.asarray(atoms.cell), atoms.get_scaled_positions()
        for zone in ZONES:
            lattice = projected(cell, places, atoms.numbers, zone, **of)
            names.append(file.stem)
            patterns.append(pattern(lattice, polar))
    log.info("%d structures along %d axes each", len(files), len(ZONES))
    every = jax.tree.map(lambda *parts: jnp.stack(parts), *patterns)
    return KnownCrystals(tuple(names), len(files) * ZONES, every)


def named(templates: Float[Array, "k r t"], known: KnownCrystals, polar: Polar) -> list[Name]:
    """Of each template."""
    names = []
    for logs, agreement in zip(*compared(templates, known.patterns, polar), strict=True):
        chance = np.asarray(jax.nn.softmax(logs), float)
        best = int(np.argmax(chance))
        of_crystal = {
            name: float(np.sum(chance, where=np.array(known.names) == name))
            for name in sorted(set(known.names))
        }
        own = of_crystal.pop(known.names[best])
        rivals = tuple(name for name, p in of_crystal.items() if p > UNLIKELY)
        likely = known.names[best], known.zones[best], own, float(agreement[best])
        names.append(Name(*likely, rivals))
    return names
