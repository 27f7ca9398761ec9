"""All records of a journal as one NeXus file."""

import os
import re

import numpy as np

from micjax.instruments.base import Record
from micjax.instruments.chain import JournalError
from micjax.instruments.journal_reader import JournalStep, journal_lines, records
from micjax.io import Field, FieldAxis, write_nexus


def consolidate(folder: str | os.PathLike, path: str | os.PathLike) -> int:
    """All records of a journal in one NeXus file, at any time; it can be made again.

    Steps of equal channels and shapes become one field `[step, ...]`, and where the axes were is a
    field for each of them.

    **Returns:** how many records there are.
    """
    groups: dict[tuple, list[tuple[JournalStep, Record]]] = {}
    for step, record in records(folder):
        shapes = tuple((n, np.shape(v)) for n, v in record.data.items())
        groups.setdefault((step.intent["mode"], shapes), []).append((step, record))
    if not groups:
        raise JournalError(f"the journal in {folder} has no records yet")
    fields: dict[str, Field] = {}
    seen: dict[str, int] = {}
    for (mode, _), members in groups.items():
        seen[mode] = seen.get(mode, 0) + 1
        prefix = mode if seen[mode] == 1 else f"{mode}_{seen[mode]}"
        fields |= _fields(prefix, members)
    begun = journal_lines(folder)[0]
    write_nexus(path, fields, title=f"records of {folder}", process=begun)
    return sum(map(len, groups.values()))


def _fields(prefix: str, members: list[tuple[JournalStep, Record]]) -> dict[str, Field]:
    first = members[0][1]
    index = FieldAxis("step", np.array([s.index for s, _ in members], dtype=float), "")
    fields = {}
    for name, values in first.data.items():
        axes = []
        for dim, size in zip(first.dims[name], np.shape(values), strict=True):
            where, unit = first.coords.get(dim, (np.arange(size, dtype=float), ""))
            if np.asarray(where).dtype.kind not in "biuf":  # names of places, not where they are
                where, unit = np.arange(size, dtype=float), ""
            axes.append(FieldAxis(_label(dim), np.asarray(where, dtype=float), unit))
        stacked = np.stack([np.asarray(r.data[name]) for _, r in members])
        label = _label(prefix, name)
        fields[label] = Field(stacked, (index, *axes), first.units[name], label)
    units = members[0][0].intent.get("axis_units", {})
    for name in first.at:
        where, label = np.array([r.at[name] for _, r in members]), _label(prefix, "at", name)
        fields[label] = Field(where, (index,), units.get(name, ""), label)
    return fields


def _label(*parts: str) -> str:
    """A name that NeXus can hold."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", "_".join(parts))
