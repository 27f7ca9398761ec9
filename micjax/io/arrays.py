"""Bare arrays: .npy, .npz and plain .tiff. They say nothing of units, so values are taken as nm."""

from pathlib import Path

import numpy as np

from micjax.io.fields import Field, by_name, image_axes, nm_per, with_pixel
from micjax.io.packages import third_party

_PARK_MAGIC = 50432  # the private TIFF tag by which Park marks its files


def _bare(data: np.ndarray, name: str) -> Field:
    data = np.asarray(data)
    if data.ndim < 2:
        raise ValueError(f"{name} has shape {data.shape}, an image has two dimensions")
    if data.dtype.kind not in "fiubc":
        raise ValueError(f"{name} holds {data.dtype}, not numbers")
    return Field(data, image_axes(data.shape), "nm", name)


def read_npy(path: Path) -> dict[str, Field]:
    """One array of heights in nm, `[iy, ix]`; the pixel size has to come from the user."""
    return by_name([_bare(np.load(path, allow_pickle=False), path.stem)])


def read_npz(path: Path) -> dict[str, Field]:
    """Every array of two or more dimensions is a channel in nm.

    A key `pixel_nm` (or `dx`), one number or `(dy, dx)`, states the pixel size in nm.
    """
    # numpy leaves a damaged archive open if it opens it itself
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    pixel = next((arrays.pop(key) for key in ("pixel_nm", "dx") if key in arrays), None)
    fields = [_bare(a, key) for key, a in arrays.items() if a.ndim >= 2]
    if not fields:
        raise ValueError("no array of two dimensions in it")
    if pixel is not None:
        fields = [with_pixel(f, pixel.ravel().tolist()) for f in fields]
    return by_name(fields)


def is_park(path: Path) -> bool:
    """Whether a TIFF was written by a Park microscope."""
    with third_party("tifffile", ".tiff") as tifffile, tifffile.TiffFile(path) as tiff:
        return _PARK_MAGIC in tiff.pages[0].tags


def read_tiff(path: Path) -> dict[str, Field]:
    """A plain TIFF of heights in nm; a stack of pages is read as one array.

    Only the scale of ImageJ is believed: the resolution of other writers is that of a printer.
    """
    with third_party("tifffile", ".tiff") as tifffile, tifffile.TiffFile(path) as tiff:
        image = _bare(tiff.asarray(), path.stem)
        if tiff.pages[0].samplesperpixel != 1:
            raise ValueError("a colour picture, not a map of heights")
        scale = nm_per((tiff.imagej_metadata or {}).get("unit", "").replace("\\u00B5", "u"))
        tags = tiff.pages[0].tags
        if scale is None or "XResolution" not in tags or "YResolution" not in tags:
            return by_name([image])
        # pixels per unit, as a fraction
        per_unit = [tags[key].value for key in ("YResolution", "XResolution")]
    pixel = [scale * below / above for above, below in per_unit]
    return by_name([with_pixel(image, pixel)])
