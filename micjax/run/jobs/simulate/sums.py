"""Sums over the steps of a simulation, and a file of them from which they go on bit for bit."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import h5py
import jax
import numpy as np

from micjax.core.files import write_atomically
from micjax.core.progress import progress

FORMAT = "micjax simulation 1"
EVERY_S = 1.0  # at least between two files
SHARE = 0.05  # of the time that the files may take

Sums = dict[str, Any]  # of arrays


class Kept:
    """The file of a simulation, `checkpoints/simulation.h5` in its folder."""

    def __init__(self, folder: pathlib.Path, resume: bool = False):
        """A file that is there is taken up, or begun anew without `resume`."""
        self.path = folder / "checkpoints" / "simulation.h5"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            self.path.unlink(missing_ok=True)
        self.last, self.took = time.monotonic(), 0.0

    @property
    def begun(self) -> bool:
        return self.path.exists()

    def read(self, sums: Sums, steps: int) -> tuple[int, Sums]:
        """How many steps there are, and what they add up to; 0 and `sums` without a file.

        **Raises:** `ValueError` for the file of another simulation, or another machine.
        """
        if not self.begun:
            return 0, sums
        try:
            with h5py.File(self.path, "r") as file:
                facts, stored = dict(file.attrs), {n: np.asarray(d[()]) for n, d in file.items()}
        except OSError as error:
            raise ValueError(f"{self.path} is no checkpoint: {error}") from error
        alike = facts.get("format") == FORMAT and facts.get("steps") == steps
        for name, new in sums.items():
            old = stored.get(name)
            alike &= old is not None and (old.shape, old.dtype) == (new.shape, new.dtype)
        if not alike:
            raise ValueError(
                f"{self.path} is of another simulation, another precision or number of devices"
            )
        return int(facts["done"]), stored

    def write(self, done: int, sums: Sums, steps: int) -> None:
        """**Raises:** `OSError` when it cannot be written."""
        began = time.monotonic()

        def write(file: h5py.File) -> None:
            file.attrs.update(format=FORMAT, steps=steps, done=done)
            for name, values in sums.items():
                file[name] = np.asarray(values)

        write_atomically(self.path, write)
        self.last = time.monotonic()
        self.took = self.last - began

    def due(self) -> bool:
        return time.monotonic() - self.last >= max(EVERY_S, self.took / SHARE)


def summed(
    kept: Kept,
    title: str,
    steps: int,
    add: Callable[[int, Sums], Sums],
    sums: Sums,
    commit: Callable[[int, Sums], None] | None = None,
) -> Sums:
    """sums = add(step, sums) for each step, from the last that `kept` has.

    **Arguments:**

    - `commit`: does what a step does to another file, from what `kept` has of it by then; done
        twice it is as done once, so that a kill in between costs nothing.
    """
    done, sums = kept.read(sums, steps)
    if commit is not None and done:
        commit(done - 1, sums)
    with progress(title, steps) as show:
        for step in range(done, steps):
            sums = add(step, sums)
            if commit is not None or step + 1 == steps or kept.due():
                kept.write(step + 1, jax.tree.map(np.asarray, sums), steps)
            if commit is not None:
                commit(step, sums)
            show(step + 1)
    return sums
