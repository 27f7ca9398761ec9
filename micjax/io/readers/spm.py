"""Native files of scanning-probe microscopes, read by SurfaceTopography.

It gives the image as the vendor's program and Gwyddion show it: the first row is the top one.
SurfaceTopography holds `[ix, iy]` and is transposed here. Igor waves (.ibw) are stored with y up;
igor2 alone would give them upside down.
"""

import logging
import math
import re
from pathlib import Path

import numpy as np

from micjax.core.foreign.limits import check_size
from micjax.io.fields import Field, by_name, image_axes
from micjax.io.packages import third_party
from micjax.io.readers.tiff import whole_tiff

log = logging.getLogger(__name__)

TOPOGRAPHY_READERS = {  # extension: (family, module, class)
    ".ibw": ("Asylum Igor wave", "IBW", "IBWReader"),
    ".di": ("Bruker Nanoscope", "DI", "DIReader"),
    ".spm": ("Bruker Nanoscope", "DI", "DIReader"),
    ".000": ("Bruker Nanoscope", "DI", "DIReader"),  # and .001, .002 ...
    ".nid": ("Nanosurf", "EZD", "EZDReader"),
    ".top": ("WSxM", "WSXM", "WSXMReader"),
    ".stp": ("WSxM", "WSXM", "WSXMReader"),
    ".jpk": ("JPK", "JPK", "JPKReader"),
    ".mi": ("PicoView", "MI", "MIReader"),
    ".tiff": ("Park TIFF", "PS", "PSReader"),
}

# what tells channels of one name apart: Nanoscope's pass and direction, PicoView's direction
_QUALIFIERS = ("scan line", "line direction", "trace")


def _units(channel) -> tuple[str, str]:
    """Units of a SurfaceTopography channel: of its axes, of its values."""
    lateral, values = channel.unit, channel.data_unit
    # a pair where axes and values differ; heights that are lengths come in the axes' unit
    lateral = lateral[0] if isinstance(lateral, tuple) else lateral
    values = values[1] if isinstance(values, tuple) else values
    if values is None and channel.height_scale_factor is None:
        values = "LSB"  # the digitiser's numbers: the reader knows no scale for this channel
    return lateral or "", values or ""


def _label(channel, repeated: bool) -> str:
    # Igor writes a label over a longer one: "Phase1Retracece" is "Phase1Retrace" and its remains
    name = re.sub(r"(trace)(a?ce)+$", r"\1", channel.name or "Channel", flags=re.IGNORECASE)
    raw = channel.info.get("raw_metadata", {}) if repeated else {}
    qualifiers = [raw[key] for key in _QUALIFIERS if isinstance(raw.get(key), str)]
    return f"{name} ({' '.join(qualifiers)})" if qualifiers else name


def read_topography(path: Path, extension: str) -> dict[str, Field]:
    """Every image of a file that SurfaceTopography knows.

    Of Nanosurf and JPK files it gives the height channels only.

    **Arguments:**

    - `path`: the file.
    - `extension`: which of `TOPOGRAPHY_READERS` it is.

    **Returns:** fields by channel, `[iy, ix]`; pixels without a value are NaN.
    """
    _, module, reader = TOPOGRAPHY_READERS[extension]
    if extension == ".jpk":  # a TIFF of a page a channel, of which some may be missing
        with whole_tiff(path):
            pass
    if extension in (".nid", ".jpk"):
        log.info("%s: of such files the height channels are read", path)
    with third_party(f"SurfaceTopography.IO.{module}", extension) as readers:
        channels = [c for c in getattr(readers, reader)(str(path)).channels if c.dim == 2]
        names = [c.name for c in channels]
        check_size(path, 8 * sum(math.prod(c.nb_grid_pts) for c in channels))
        fields = []
        for channel in channels:
            surface = channel.topography()
            data = np.ma.filled(surface.heights().astype(np.float64), np.nan).T
            (nx, ny), (size_x, size_y) = channel.nb_grid_pts, channel.physical_sizes
            lateral, unit = _units(channel)
            axes = image_axes(data.shape, (float(size_y) / ny, float(size_x) / nx), lateral)
            label = _label(channel, repeated=names.count(channel.name) > 1)
            fields.append(Field(data, axes, unit, label, dict(channel.info)))
    return by_name(fields)
