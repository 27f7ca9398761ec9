"""Elastic and thermal diffuse CBED patterns of crystals of random composition, as one HDF5 file.

    python experiments/thermal_diffuse/run.py [FILE] [--crystals 240]    crystal by crystal; Ctrl-C
                                                                         and the same again: goes on
    python experiments/thermal_diffuse/run.py FILE --table     baselines and noise; results.json
    python experiments/thermal_diffuse/run.py FILE --figure    thermal_diffuse.png

A larger --crystals lets a file grow; every other setting is one of the file. README.md has the
layout.
"""

import argparse
import dataclasses
import json
import logging
import os
import pathlib
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import h5py
import numpy as np
from crystals import Settings, drawn, held_out, number_of, split_of
from patterns import (
    AXIS,
    ENERGY_KEV,
    PIXEL_A,
    PIXEL_MRAD,
    SEMIANGLE_MRAD,
    SIDE,
    check_reach,
    simulated,
)

from micjax.core.files import write_atomically
from micjax.core.progress import progress

HERE = pathlib.Path(__file__).parent
FORMAT = "micjax thermal diffuse 1"
PATTERNS = ("static", "damped", "elastic", "total", "elastic_second", "total_first")
BEAM = "fraction of the beam"
MEAN_WAVE_OF = {  # configurations
    "elastic": lambda settings: settings.configurations,
    "elastic_second": lambda settings: settings.configurations // 2,
}
OF_PATTERN = ("crystal", "thickness", "place")
PIXELS = {"ky": "ky_mrad", "kx": "kx_mrad", "y": "y_A", "x": "x_A"}  # dimension: its axis
LAYOUT = {  # name: dimensions, units, type
    **{name: ((*OF_PATTERN, "ky", "kx"), BEAM, "f4") for name in PATTERNS},
    **{
        f"{n}_{where}": (OF_PATTERN, BEAM, "f4") for n in PATTERNS for where in ("inside", "beyond")
    },
    "z_map": (("crystal", "place", "y", "x"), "atomic number", "f4"),
    "split": (("crystal",), "", h5py.string_dtype()),
    "elements": (("crystal", "site"), "atomic number", "i4"),
    "u_A2": (("crystal", "site"), "angstrom^2", "f8"),
    "edge_A": (("crystal",), "angstrom", "f8"),
    "cells": (("crystal", "thickness"), "", "i4"),
    "thickness_A": (("crystal", "thickness"), "angstrom", "f8"),
    "place_A": (("crystal", "place", "yx"), "angstrom", "f8"),
}


def created(path: pathlib.Path, settings: Settings) -> None:
    """A file without crystals."""
    check_reach(settings)
    lengths = {"site": 3, "yx": 2, "thickness": settings.thicknesses, "place": settings.places}
    lengths |= dict.fromkeys(PIXELS, SIDE)

    def write(file: h5py.File) -> None:
        file.attrs["format"] = FORMAT
        file.attrs["settings"] = json.dumps(dataclasses.asdict(settings))
        file.attrs["complete"] = 0
        file.attrs["held_out_elements"] = sorted(held_out(settings.seed))
        file.attrs["energy_keV"], file.attrs["semiangle_mrad"] = ENERGY_KEV, SEMIANGLE_MRAD
        file.attrs["defocus_A"] = 0.0
        for dimension, name in PIXELS.items():
            mrad = name.endswith("mrad")
            file[name] = AXIS * (PIXEL_MRAD if mrad else PIXEL_A)
            file[name].attrs["units"] = "mrad" if mrad else "angstrom"
            file[name].make_scale(dimension)
        for name, (dimensions, units, kind) in LAYOUT.items():
            shape = tuple(lengths[d] for d in dimensions[1:])
            image = shape[-2:] == (SIDE, SIDE)
            options = {"compression": "gzip", "shuffle": True} if image else {}
            chunk = (*[1] * (len(shape) - 1), SIDE, SIDE) if image else (64, *shape)
            values = file.create_dataset(
                name, (0, *shape), kind, maxshape=(None, *shape), chunks=chunk, **options
            )
            values.attrs["units"] = units
            if name in MEAN_WAVE_OF:
                values.attrs["comment"] = (
                    f"intensity of the mean of {MEAN_WAVE_OF[name](settings)} waves: so many times "
                    "less than the diffuse part is still in it"
                )
            for i, dimension in enumerate(dimensions):
                values.dims[i].label = dimension
                if dimension in PIXELS:
                    values.dims[i].attach_scale(file[PIXELS[dimension]])

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


def opened(path: pathlib.Path, mode: str = "r") -> h5py.File:
    """**Raises:** `ValueError` for a file of another kind, or one that is torn."""
    try:
        file = h5py.File(path, mode)
    except OSError as error:
        raise ValueError(f"{path} is no whole file of this command: {error}") from error
    if file.attrs.get("format") != FORMAT:
        file.close()
        raise ValueError(f"{path} is no file of this command (no format {FORMAT!r})")
    return file


def complete(path: pathlib.Path, settings: Settings) -> int:
    """How many crystals the file has.

    **Raises:** `ValueError` when it was made with other settings.
    """
    with opened(path) as file:
        theirs, ours = json.loads(file.attrs["settings"]), dataclasses.asdict(settings)
        theirs.setdefault("only", "")  # older files have all
        other = [f"{n} = {theirs.get(n)}, not {v}" for n, v in ours.items() if theirs.get(n) != v]
        if other:
            raise ValueError(
                f"{path} was made with {'; '.join(other)}: give it these, or a new name"
            )
        return int(file.attrs["complete"])


def append(path: pathlib.Path, crystal: dict[str, np.ndarray]) -> None:
    """Adds a crystal whole or not at all; the file is open only while it is written."""
    with opened(path, "r+") as file:
        count = int(file.attrs["complete"])
        try:
            for name, values in crystal.items():
                file[name].resize(count + 1, 0)
                file[name][count] = values
            file.attrs["complete"] = count + 1
        finally:
            for name in LAYOUT:
                file[name].resize(int(file.attrs["complete"]), 0)


def record(settings: Settings, number: int) -> dict[str, np.ndarray]:
    """Crystal `number`, as it stands in a file."""
    crystal = drawn(settings, number)
    return {
        **simulated(settings, number, crystal),
        **crystal._asdict(),
        "split": split_of(crystal.elements, settings.seed),
        "thickness_A": crystal.cells * crystal.edge_A,
    }


def make(path: pathlib.Path, settings: Settings, crystals: int) -> None:
    """The file with at least so many crystals; those which it has are kept."""
    if not path.exists():
        created(path, settings)
    done = complete(path, settings)
    with progress("thermal diffuse", crystals) as show:
        for number in range(done, crystals):
            append(path, record(settings, number_of(settings, number)))
            show(number + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    file = pathlib.Path("runs/thermal_diffuse.h5")
    parser.add_argument("file", type=pathlib.Path, nargs="?", default=file)
    parser.add_argument("--crystals", type=int, default=240)
    for field in dataclasses.fields(Settings):
        name, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        parser.add_argument(name, type=kind, default=field.default)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--figure", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("micjax").setLevel(logging.INFO)
    settings = Settings(**{f.name: getattr(given, f.name) for f in dataclasses.fields(Settings)})
    try:
        if given.table or given.figure:
            import baselines

            with opened(given.file) as data:
                if given.figure:
                    baselines.figure(data).savefig(HERE / "thermal_diffuse.png", dpi=80)
                if given.table:
                    found = baselines.results(data)
                    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
                    print(baselines.tables(found))
        else:
            make(given.file, settings, given.crystals)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted: the same command goes on with {given.file}")


if __name__ == "__main__":
    main()
