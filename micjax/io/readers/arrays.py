"""Bare arrays: .npy and .npz. They say nothing of units, so none are made up."""

import logging
from pathlib import Path

import numpy as np

from micjax.core.foreign.limits import check_size
from micjax.io.fields import Field, by_name, cut_rows, image_axes, with_pixel

log = logging.getLogger(__name__)


def bare(data: np.ndarray, name: str, rows: slice | None = None) -> Field:
    """An array without units: y and x are in pixels. Of a map only these rows.

    **Raises:** ValueError for what is no array of numbers.
    """
    if data.ndim == 0:
        raise ValueError(f"{name} is a single value, no array")
    if data.dtype.kind not in "fiubc":
        raise ValueError(f"{name} holds {data.dtype}, not numbers")
    part, axes, told = cut_rows(image_axes(data.shape), rows)
    return Field(np.array(data[part]), axes, "", name, {"stored": data.dtype} | told)


def read_npy(path: Path, rows: slice | None = None) -> dict[str, Field]:
    """One array `[..., iy, ix]` without units; the pixel size has to come from the user. Of a map
    only these rows."""
    data = np.load(path, mmap_mode="r")  # so that it cannot hold more than the file
    if (rest := path.stat().st_size - data.offset - data.nbytes) > 0:
        raise ValueError(f"{rest} bytes after the array; several arrays go into an .npz")
    check_size(path, 8 * data.size)
    return by_name([bare(data, path.stem, rows)])


def read_npz(path: Path) -> dict[str, Field]:
    """Every array of two or more dimensions is a channel; every curve, where there is no such.

    A key `pixel_nm` (or `dx`), one number or `(dy, dx)`, states the pixel size in nm.
    """
    # numpy leaves a damaged archive open if it opens it itself
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        check_size(path, 8 * sum(info.file_size for info in archive.zip.infolist()))
        arrays = {key: archive[key] for key in archive.files}
    pixel = next((arrays.pop(key) for key in ("pixel_nm", "dx") if key in arrays), None)
    least = min(2, max((a.ndim for a in arrays.values()), default=0))
    fields = [bare(a, key) for key, a in arrays.items() if a.ndim >= max(least, 1)]
    if not fields:
        raise ValueError("no array in it")
    if others := [key for key, a in arrays.items() if a.ndim < least]:
        log.warning("%s: not used: %s", path, ", ".join(others))
    if pixel is not None:
        fields = [with_pixel(f, pixel.ravel().tolist()) for f in fields]
    return by_name(fields)
