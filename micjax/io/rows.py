"""Maps of files, whose rows are read when they are needed."""

import dataclasses
import logging
import math
import os
from pathlib import Path

import numpy as np

from micjax.core.names import unknown_name
from micjax.io.fields import ROWS, Field
from micjax.io.registry import by_rows, chosen

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FileRows:
    """A map `[y, x, ...]` of a file, of which a slice gives a `Field` with some of its rows.

    **Arguments:**

    - `path`, `channel`: of the file, as of `read`.
    - `first`: the first row of it, which says what is not of single rows.
    - `count`: how many rows there are.
    """

    path: Path
    channel: str
    first: Field
    count: int

    @classmethod
    def of(cls, path: str | os.PathLike, channel: str | None = None) -> "FileRows | None":
        """None for what is no map, and for a file that cannot be read row by row.

        **Raises:** as `read`.
        """
        fields = by_rows(path, slice(0, 1))
        if fields is None:
            return None
        name = chosen(Path(path), fields) if channel is None else channel
        if name not in fields:
            raise ValueError(f"{path}: {unknown_name('channel', name, fields)}")
        field = fields[name]
        if ROWS not in field.metadata:
            return None
        if not field.metadata[ROWS]:
            raise ValueError(f"{path}: {name} has no rows")
        return cls(Path(path).absolute(), name, field, field.metadata[ROWS])

    @property
    def bytes(self) -> int:
        """What all of it would take."""
        return self.count * self.first.data.nbytes

    def __getitem__(self, rows: slice) -> Field:
        first, last, step = rows.indices(self.count)
        if step != 1 or last <= first:
            raise IndexError(f"rows {rows} of {self.count}")
        return by_rows(self.path, slice(first, last))[self.channel]

    def thinned(self, most: int) -> Field:
        """Evenly spaced rows, so that there are at most so many numbers, next to each other: what
        can be said of all without reading all."""
        rows = min(self.count, max(most // max(math.prod(self.first.data.shape), 1), 2))
        if rows == self.count:
            return self[:]
        pieces = min(rows, 32)
        starts = np.linspace(0, self.count - rows // pieces, pieces).astype(int)
        fields = [self[i : i + rows // pieces] for i in starts]
        data = np.concatenate([f.data for f in fields])
        axis = self.first.axes[0]
        every = self._rows_axis()[: len(data)]
        axes = (dataclasses.replace(axis, values=every), *self.first.axes[1:])
        return dataclasses.replace(self.first, data=data, axes=axes)

    def _rows_axis(self) -> np.ndarray:
        """Coordinates of the rows, as far as the first two tell them."""
        if self.count < 2:
            return self.first.axes[0].values
        two = self[:2].axes[0].values
        return two[0] + (two[1] - two[0]) * np.arange(self.count)
