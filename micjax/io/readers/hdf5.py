"""HDF5: our own NeXus results and those of others, and pyNSID files of pycroscopy and sidpy."""

import logging
import re
from pathlib import Path

import numpy as np

from micjax.core.foreign.hdf5 import File, Node, opened
from micjax.io.fields import (
    PIXELS,
    Field,
    FieldAxis,
    by_name,
    cut_rows,
    nm_per,
    rows_first,
    unpacked,
)
from micjax.io.nexus import nexus_fields

log = logging.getLogger(__name__)

# pyNSID files made from Igor waves say "m" of every channel but phase and current
_ASYLUM_UNITS = {"Phase": "deg", "UserIn": "V", "Potential": "V", "Frequency": "Hz"}


def read_hdf5(path: Path, rows: slice | None = None) -> dict[str, Field]:
    """Every dataset of a NeXus or pyNSID file; of maps only these rows.

    **Returns:** fields by channel. Of a NeXus file the channel is the name of the NXdata group,
    of a pyNSID file the quantity.
    """
    with opened(path) as file:
        fields = nexus_fields(file, rows) or nsid_fields(file, rows)
    if not fields:
        raise ValueError("neither NeXus NXdata nor pyNSID datasets in it")
    return by_name(fields)


def nsid_fields(file: File, rows: slice | None = None) -> list[Field]:
    """Every pyNSID dataset of a file, in its order.

    pyNSID stores `[x, y, ...]`: the result is `[iy, ix, ...]`, with the file's own y along the
    rows. In files made from Asylum's Igor waves this y points up, so that the same scan read from
    the .ibw has its rows the other way round.
    """
    datasets = [n for n in file.nodes() if n.text("quantity") and n.shape and not n.is_scale]
    readable = [n for n in datasets if n.kind not in ("", "text") or n.elsewhere]
    if others := [n.path for n in datasets if n not in readable]:
        log.warning("no numbers, not read: %s", ", ".join(others))
    return [_nsid_field(file, dataset, rows) for dataset in readable]


def _nsid_field(file: File, dataset: Node, rows: slice | None) -> Field:
    unit, name = dataset.text("units"), dataset.text("quantity")
    axes = [_nsid_axis(file, dataset, i, unit) for i in range(len(dataset.shape))]
    part, axes, told = cut_rows(axes, rows)
    values = unpacked(file.read(dataset, part), dataset.attrs, dataset.path)
    plain = re.sub("^(Nap|DAC)", "", name)
    if unit == "m":
        unit = next((u for start, u in _ASYLUM_UNITS.items() if plain.startswith(start)), unit)
        if unit != "m":
            log.info("%s: the file says m, %s is in %s", dataset.path, name, unit)
    notes = file.get(dataset.path.rpartition("/")[0] + "/original_metadata")
    metadata = told | {
        "data_type": dataset.text("data_type"),
        "modality": dataset.text("modality"),
        "original": {} if notes is None else {k: _plain(v) for k, v in notes.attrs.items()},
    }
    return rows_first(Field(values, axes, unit, name, metadata))


def _nsid_axis(file: File, dataset: Node, i: int, data_unit: str) -> FieldAxis:
    label, at = dataset.dims[i]
    label = label or f"axis{i}"
    if at is None:
        return FieldAxis(label, np.arange(dataset.shape[i]), PIXELS)
    scale = file.at(at)
    unit = scale.text("units")
    spatial = scale.text("dimension_type") == "SPATIAL"
    # the same converter writes the channel's unit on x and y: a phase image is 1e-6 "deg" wide
    if spatial and unit == data_unit and nm_per(unit) is None:
        unit = "m"
    return FieldAxis(scale.text("name") or label, file.read(scale), unit)


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value
