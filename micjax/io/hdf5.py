"""HDF5 by plain h5py: our own NeXus results, and pyNSID files of pycroscopy and sidpy."""

import re
from pathlib import Path

import h5py
import numpy as np

from micjax.io.fields import PIXELS, Axis, Field, by_name, nm_per, rows_first
from micjax.io.nexus import nexus_fields, text

# pyNSID files made from Igor waves say "m" of every channel but phase and current
_ASYLUM_UNITS = {"Phase": "deg", "UserIn": "V", "Potential": "V", "Frequency": "Hz"}


def read_hdf5(path: Path) -> dict[str, Field]:
    """Every dataset of a NeXus or pyNSID file.

    **Returns:** fields by channel. Of a NeXus file the channel is the name of the NXdata group,
    of a pyNSID file the quantity.
    """
    with h5py.File(path, "r") as file:
        fields = nexus_fields(file) or nsid_fields(file)
    if not fields:
        raise ValueError("neither NeXus NXdata nor pyNSID datasets in it")
    return by_name(fields)


def nsid_fields(file: h5py.File) -> list[Field]:
    """Every pyNSID dataset of an open file, in the order of the file.

    pyNSID stores `[x, y, ...]`: the result is `[iy, ix, ...]`, with the file's own y along the
    rows. In files made from Asylum's Igor waves this y points up, so that the same scan read from
    the .ibw has its rows the other way round.
    """
    datasets: list[h5py.Dataset] = []

    def collect(_, node):
        if isinstance(node, h5py.Dataset) and "quantity" in node.attrs and not node.is_scale:
            if node.dtype.kind in "fiubc" and node.ndim:
                datasets.append(node)

    file.visititems(collect)
    return [_nsid_field(dataset) for dataset in datasets]


def _nsid_field(dataset: h5py.Dataset) -> Field:
    attrs = dataset.attrs
    unit, name = text(attrs.get("units", "")), text(attrs["quantity"])
    axes = tuple(_nsid_axis(dataset, i, unit) for i in range(dataset.ndim))
    plain = re.sub("^(Nap|DAC)", "", name)
    if unit == "m":
        unit = next((u for start, u in _ASYLUM_UNITS.items() if plain.startswith(start)), unit)
    notes = dataset.parent.get("original_metadata")
    metadata = {
        "data_type": text(attrs.get("data_type", "")),
        "modality": text(attrs.get("modality", "")),
        "original": {} if notes is None else {k: _plain(v) for k, v in notes.attrs.items()},
    }
    return rows_first(Field(dataset[()], axes, unit, name, metadata))


def _nsid_axis(dataset: h5py.Dataset, i: int, data_unit: str) -> Axis:
    if not len(dataset.dims[i]):
        return Axis(dataset.dims[i].label or f"axis{i}", np.arange(dataset.shape[i]), PIXELS)
    scale = dataset.dims[i][0]
    unit = text(scale.attrs.get("units", ""))
    spatial = text(scale.attrs.get("dimension_type", "")) == "SPATIAL"
    # the same converter writes the channel's unit on x and y: a phase image is 1e-6 "deg" wide
    if spatial and unit == data_unit and nm_per(unit) is None:
        unit = "m"
    name = text(scale.attrs.get("name", "")) or dataset.dims[i].label or f"axis{i}"
    return Axis(name, scale[()], unit)


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value
