"""Results: one .nxs file of NeXus NXdata groups, by plain h5py.

silx, h5web and hyperspy (`hs.load(path, nxdata_only=True)`) open it and find the axes. Layout:

    /                       NXroot    default="entry"
    /entry                  NXentry   default=<the main result>, title
    /entry/<result>         NXdata    signal="data", axes, <axis>_indices, interpretation
        data, data_errors, one dataset per axis, each with units
    /entry/process          NXprocess program, version
        configuration       NXcollection of JSON strings
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from micjax.core.files import replaced
from micjax.core.foreign.hdf5 import MOST_STEPS, File, Node, opened
from micjax.core.names import unknown_name
from micjax.io.fields import PIXELS, Field, FieldAxis, by_name, cut_rows, rows_first, unpacked

log = logging.getLogger(__name__)

_RESERVED = ("data", "data_errors", "title")  # the other datasets of an NXdata group


def write_nexus(
    path: str | os.PathLike,
    results: Mapping[str, Field],
    *,
    errors: Mapping[str, np.ndarray] | None = None,
    default: str | None = None,
    title: str = "",
    process: Mapping | None = None,
) -> None:
    """Write results to one NeXus file, whole or not at all.

    The file is written under another name in the same folder and then takes its place: a full
    disk or an interrupt leaves the file that was there before.

    **Arguments:**

    - `path`: the file, with suffix `.nxs`: hyperspy knows it by this.
    - `results`: fields of any dimension by name; a mask (bool) is stored as 0 and 1.
    - `errors`: standard deviations by the same names, in the shape and unit of their field.
    - `default`: the result that viewers open first; the first one if not given.
    - `title`: one line for the whole file.
    - `process`: how the results came about; each value is stored as JSON.

    **Raises:** ValueError for a name that NeXus cannot hold, an unknown `default`, or errors that
    fit no result. OSError where the file cannot be written.
    """
    path, errors = Path(path), dict(errors or {})
    default = next(iter(results), None) if default is None else default
    _check(results, errors, default)
    # a path or a date in the plan must not cost the results of a long run: it is written as text
    configuration = {k: json.dumps(v, default=str) for k, v in (process or {}).items()}
    with replaced(path) as unfinished, h5py.File(unfinished, "w") as file:
        entry = _entry(file, default, title)
        for name, item in results.items():
            _write_field(entry, name, item, errors.get(name))
        program = _group(entry, "process", "NXprocess")
        program["program"], program["version"] = "micjax", _version()
        notes = _group(program, "configuration", "NXcollection")
        for key, value in configuration.items():
            notes[key] = value


@contextlib.contextmanager
def create_nexus(
    path: str | os.PathLike, name: str, axes: Sequence[FieldAxis], unit: str = ""
) -> Iterator[h5py.Dataset]:
    """One result on the disk, zeros in single precision, to be filled part by part: it need not
    fit into memory. Its last two axes are a chunk. What is written stays there if the rest fails;
    a disk that is too small is told at once.

    **Arguments:**

    - `path`: the file, with suffix `.nxs`.
    - `name`: of the result.
    - `axes`: of all its dimensions.
    - `unit`: of its values.

    **Raises:** `OSError` where the file cannot be written.
    """
    room = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    room.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    with h5py.File(path, "w") as file:
        group = _group(_entry(file, name, ""), name, "NXdata", signal="data")
        shape = tuple(axis.values.size for axis in axes)
        chunks = (1,) * len(shape[:-2]) + shape[-2:]
        data = group.create_dataset("data", shape, "f4", chunks=chunks, dcpl=room)
        _describe(group, name, axes, unit)
        file.flush()
        yield data


def _entry(file: h5py.File, default: str | None, title: str) -> h5py.Group:
    file.attrs.update(NX_class="NXroot", default="entry")
    file.attrs["creator"] = f"micjax {_version()}"
    file.attrs["file_time"] = datetime.now(UTC).isoformat(timespec="seconds")
    entry = _group(file, "entry", "NXentry", default=default)
    entry["title"] = title
    return entry


def _check(results: Mapping[str, Field], errors: dict, default: str | None) -> None:
    if not results:
        raise ValueError("no results to write")
    for name in (default, *errors):
        if name not in results:
            raise ValueError(unknown_name("result", str(name), results))
    for name, sigma in errors.items():
        if np.shape(sigma) != results[name].data.shape:
            raise ValueError(
                f"errors of {name!r} have shape {np.shape(sigma)}, "
                f"the result has {results[name].data.shape}"
            )
    for name, item in results.items():
        for part in (name, *(a.name for a in item.axes)):
            if not part or "/" in part or part in (".", ".."):
                raise ValueError(f"{part!r} cannot name a result or an axis in an HDF5 file")
        if name in ("title", "process"):
            raise ValueError(f"a result cannot be called {name!r}: the file has its own {name}")
        if reserved := [a.name for a in item.axes if a.name in _RESERVED]:
            raise ValueError(f"{name!r}: an axis cannot be called {reserved[0]!r} in NXdata")


def _group(parent: h5py.Group, name: str, nx_class: str, **attrs) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs.update(NX_class=nx_class, **attrs)
    return group


def _interpretation(axes: Sequence[FieldAxis]) -> str:
    if len(axes) < 2:
        return "spectrum" if axes else "scalar"
    # of more dimensions, the last two are an image if they are called so: (t, y, x), (y, x, ky, kx)
    last = [a.name for a in axes[-2:]]
    return "image" if len(axes) == 2 or last[0].replace("y", "x") == last[1] else "spectrum"


def _write_field(entry: h5py.Group, name: str, item: Field, sigma: np.ndarray | None) -> None:
    group = _group(entry, name, "NXdata", signal="data")
    boolean = item.data.dtype == bool
    # HDF5 has no boolean that viewers agree on
    data = _dataset(group, "data", item.data.astype(np.uint8) if boolean else item.data)
    if boolean:
        data.attrs["is_mask"] = True
    _describe(group, name, item.axes, item.unit)
    if sigma is not None:
        _dataset(group, "data_errors", np.asarray(sigma)).attrs["units"] = item.unit
    group["title"] = item.name or name


def _describe(group: h5py.Group, name: str, axes: Sequence[FieldAxis], unit: str) -> None:
    """The axes and the unit of the data that are in the group."""
    data = group["data"]
    data.attrs.update(units=unit, long_name=f"{name} ({unit})" if unit else name)
    for holder in (group, data):  # hyperspy reads it on the group, silx and h5web on the data
        holder.attrs["interpretation"] = _interpretation(axes)
    group.attrs["axes"] = [a.name for a in axes]
    for i, axis in enumerate(axes):
        group[axis.name] = axis.values
        label = f"{axis.name} ({axis.unit})" if axis.unit else axis.name
        group[axis.name].attrs.update(units=axis.unit, long_name=label)
        group.attrs[f"{axis.name}_indices"] = np.int32(i)


def _dataset(group: h5py.Group, name: str, values: np.ndarray) -> h5py.Dataset:
    packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    return group.create_dataset(name, data=values, **(packed if values.size > 4096 else {}))


def _version() -> str:
    try:
        return importlib.metadata.version("micjax")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "unknown"


def read_nexus(path: str | os.PathLike) -> dict[str, Field]:
    """Every NXdata group of a NeXus file.

    **Arguments:**

    - `path`: the file.

    **Returns:** fields by the name of their group; `metadata["errors"]` are the standard
    deviations where there are any, `metadata["default"]` marks the one viewers open first.
    """
    with opened(path) as file:
        return by_name(nexus_fields(file))


def nexus_fields(file: File, rows: slice | None = None) -> list[Field]:
    """The NXdata groups of a file, in its order, each with its auxiliary signals; of maps only
    these rows."""
    default, fields = _default(file), []
    for group in file.nodes():
        if group.links is None or group.text("NX_class") != "NXdata":
            continue
        signals = [group.text("signal"), *_names(group.attrs.get("auxiliary_signals", ()))]
        for i, name in enumerate(signals):
            data = file.get(name, group) if name else None
            if data is None or data.shape is None:
                log.warning("%s: its signal %r is not there, it is not read", group.path, name)
                continue
            fields.append(_nexus_field(file, group, data, name, i, group is default, rows))
    return fields


def _default(file: File) -> Node:
    """What viewers open first: from the root along the attributes `default`."""
    node = file.root
    for _ in range(MOST_STEPS):
        wanted = node.text("default")
        following = file.get(wanted, node) if wanted else None
        if following is None or following is node:
            return node
        node = following
    raise ValueError("the attributes `default` go round in circles")


def _nexus_field(
    file: File,
    group: Node,
    data: Node,
    signal: str,
    which: int,
    is_default: bool,
    rows: slice | None,
) -> Field:
    names = _names(group.attrs.get("axes", ()))
    names += ["."] * (len(data.shape) - len(names))
    axes = [_nexus_axis(file, group, names[i], i, n) for i, n in enumerate(data.shape)]
    part, axes, told = cut_rows(axes, rows)
    values = _values(file, group, data, signal, part)
    metadata: dict[str, Any] = told | ({"default": True} if is_default and not which else {})
    for name in (f"{signal}_errors", *(("errors",) if not which else ())):
        if (errors := file.get(name, group)) is not None and errors.kind:
            metadata["errors"] = file.read(errors, part if errors.shape == data.shape else ())
            break
    if (title := file.get("title", group)) is not None and title.kind == "text":
        metadata["title"] = file.read(title)
    name = f"{group.name} {signal}" if which else group.name
    field = Field(values, axes, data.text("units"), name, metadata)
    if "errors" in metadata and np.shape(metadata["errors"]) == values.shape:
        metadata["errors"] = rows_first(dataclasses.replace(field, data=metadata["errors"])).data
    return rows_first(field)


def _values(
    file: File, group: Node, data: Node, signal: str, part: tuple[slice, ...]
) -> np.ndarray:
    """The numbers of a part of a dataset, with the scale and the offset that the group states."""
    values = file.read(data, part)
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{data.path} holds text, not numbers")
    if np.any(data.attrs.get("is_mask", False)):
        return values.astype(bool)
    for names, operation in (
        (("scaling_factor", f"{signal}_scaling_factor"), np.multiply),
        (("offset", f"{signal}_offset"), np.add),
    ):
        for stated in filter(None, (file.get(name, group) for name in names)):
            values = operation(values, file.read(stated))
    return unpacked(values, data.attrs, data.path)


def _nexus_axis(file: File, group: Node, name: str, i: int, size: int) -> FieldAxis:
    """Coordinates along a dimension; the index where the file has none."""
    if name == ".":  # how NeXus says that a dimension has no axis
        return FieldAxis(f"axis{i}", np.arange(size), PIXELS)
    if np.ravel(group.attrs.get(f"{name}_indices", i))[:1] != [i]:
        raise ValueError(f"{group.path}: axes and {name}_indices are in another order")
    node = file.get(name, group)
    values = file.read(node) if node is not None and node.kind else None
    if isinstance(values, np.ndarray) and values.ndim == 1:
        unit = node.text("units")
        if values.size == size:
            return FieldAxis(name, unpacked(values, node.attrs, node.path), unit)
        if values.size == size + 1:  # the borders of bins
            return FieldAxis(name, (values[1:] + values[:-1]) / 2, unit)
    log.warning("%s: the axis %s does not fit the data, pixels are counted", group.path, name)
    return FieldAxis(name, np.arange(size), PIXELS)


def _names(value: Any) -> list[str]:
    """Names in a list, or in one text between colons or commas."""
    if isinstance(value, str):
        return re.split("[:,]", value.strip("[]")) if value else []
    return list(value) if all(isinstance(v, str) for v in value) else []
