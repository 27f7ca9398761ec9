"""What a learner believes, in a file that others look at while it goes on: `state.npz`.

Maps over two axes; over any other number, profiles along each axis through the best point.
"""

import logging
import os
import pathlib
import time
from typing import Any

import numpy as np

from micjax.active.learner.learner import Learner
from micjax.core.files import replaced

log = logging.getLogger("micjax")

STATE = "state.npz"
ACROSS = 48  # places along an axis
SHARE, LONGEST_S = 0.1, 5.0  # of the time for snapshots, and the longest without one


class Snapshots:
    """Writes them as often as a tenth of the time allows."""

    def __init__(self, folder: str | os.PathLike, learner: Learner):
        self.path, self._learner, self._not_before = pathlib.Path(folder) / STATE, learner, 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._not_before:
            try:
                self.write()
            except OSError as error:  # nobody can look, and the campaign goes on
                log.warning("%s cannot be written: %s", self.path, error)

    def write(self) -> None:
        """**Raises:** `OSError` when it cannot be written; nothing is written before two data."""
        if len(self._learner.data[1]) < 2:
            return
        begun = time.monotonic()
        with replaced(self.path) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, **believed(self._learner))
        now = time.monotonic()
        self._not_before = now + min((now - begun) / SHARE, LONGEST_S)


def told_in(folder: str | os.PathLike) -> list[str]:
    """The sentences of a snapshot about limits and the front."""
    path = pathlib.Path(folder) / STATE
    if not path.exists():
        return []
    with np.load(path) as arrays:
        return arrays["told"].tolist() if "told" in arrays else []


def believed(learner: Learner) -> dict[str, Any]:
    """The arrays of a snapshot.

    `names`, `units` of the axes, `points` `[n, d]` and `outcomes` `[n]`, what is `told` of limits
    and the front; for two axes `along0`, `along1`, and `median`, `uncertainty`, `acquisition` over
    them; else `along`, `median`, `lower`, `upper` `[d, places]`.
    """
    space = learner.space
    points, outcomes = learner.data
    snapshot = {
        "names": np.array(space.names),
        "units": np.array([axis.unit for axis in space.axes]),
        "outcome": np.array(learner.settings.outcome),
        "points": points,
        "outcomes": outcomes,
        "told": np.array(learner.outcomes.told(learner.values), str),
    }
    along = np.stack([np.linspace(axis.lower, axis.upper, ACROSS) for axis in space.axes])
    whole = np.asarray([axis.whole for axis in space.axes])[:, None]
    along = np.where(whole, np.round(along), along)  # between two categories there is nothing
    return snapshot | (_maps(learner, along) if len(along) == 2 else _profiles(learner, along))


def _maps(learner: Learner, along: np.ndarray) -> dict[str, Any]:
    grid = np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, 2)
    now, worth = learner.reckoned(grid), learner.acquisition_at(grid)
    maps = {"median": now.median, "uncertainty": now.uncertainty, "acquisition": worth}
    maps = {n: np.asarray(v).reshape(ACROSS, ACROSS) for n, v in maps.items()}
    return {"along0": along[0], "along1": along[1], **maps}


def _profiles(learner: Learner, along: np.ndarray) -> dict[str, Any]:
    best = learner.leading
    lines = np.repeat(best[None, None], len(along), axis=0).repeat(ACROSS, axis=1)
    for i, places in enumerate(along):
        lines[i, :, i] = places
    now = learner.reckoned(lines.reshape(-1, len(along)))
    bands = {"median": now.median, "lower": now.lower, "upper": now.upper}
    return {"along": along} | {n: np.asarray(v).reshape(along.shape) for n, v in bands.items()}
