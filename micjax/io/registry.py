"""Which reader reads which file, and which channel is meant."""

import dataclasses
import importlib.metadata
import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from micjax.core.names import listed, printable, unknown_name
from micjax.io.fields import Field, Pixel, as_pixel, with_pixel
from micjax.io.readers import arrays, electron, gwy, hdf5, png, spm, tiff, zarr

log = logging.getLogger(__name__)

# heights as the makers call them; WSxM's one channel has no name, and Nanosurf says "Z-Axis"
_HEIGHT = re.compile(r"height|topograph|z.?sensor|z.?axis|^default$", re.IGNORECASE)


class Format(NamedTuple):
    """A family of files: its name, and the function that gives its fields by channel; whether that
    takes `rows`, the slice of a map that is read; whether a file is a folder."""

    family: str
    read: Callable[..., Mapping[str, Field]]
    by_rows: bool = False
    folder: bool = False


def _read_tiff(path: Path) -> Mapping[str, Field]:
    if tiff.is_park(path):
        return spm.read_topography(path, ".tiff")
    return tiff.read_tiff(path)


def formats() -> dict[str, Format]:
    """Every format by its extension, built in or installed as an entry point.

    A package adds one under the entry-point group `micjax.readers`: its name is the extension
    with the dot, its value a function `path -> {channel: Field}`.

    **Returns:** `{".ibw": Format(family, read), ...}`; `.000` stands for any three digits.
    """
    table = {
        **dict.fromkeys(
            (".h5", ".hdf5", ".hf5"), Format("HDF5 (pyNSID, NeXus)", hdf5.read_hdf5, by_rows=True)
        ),
        ".nxs": Format("NeXus", hdf5.read_hdf5, by_rows=True),
        ".npy": Format("NumPy array", arrays.read_npy, by_rows=True),
        ".zarr": Format("Zarr", zarr.read_zarr, by_rows=True, folder=True),
        ".npz": Format("NumPy archive", arrays.read_npz),
        **dict.fromkeys((".tif", ".tiff"), Format("TIFF (plain, Park)", _read_tiff)),
        ".gwy": Format("Gwyddion", gwy.read_gwy),
        ".png": Format("PNG", png.read_png),
        **dict.fromkeys((".jpg", ".jpeg"), Format("JPEG", png.read_png)),
    }
    for extension in electron.READERS:
        reader = partial(electron.read_electron, extension=extension)
        family, folder = f"{extension[1:]} by rosettasciio", extension == ".zspy"
        table[extension] = Format(family, reader, by_rows=True, folder=folder)
    for extension, (family, _, _) in spm.TOPOGRAPHY_READERS.items():
        reader = partial(spm.read_topography, extension=extension)
        table.setdefault(extension, Format(family, reader))
    for point in importlib.metadata.entry_points(group="micjax.readers"):
        reader = partial(_read_plugin, point=point)
        table.setdefault(point.name.lower(), Format(f"{point.name} by {point.value}", reader))
    return table


def _read_plugin(path: Path, point: importlib.metadata.EntryPoint) -> Mapping[str, Field]:
    return point.load()(path)


def by_rows(path: str | os.PathLike, rows: slice) -> Mapping[str, Field] | None:
    """Every channel of a file, of maps these rows; None for a format that is read whole.

    **Raises:** as `read`.
    """
    return _load(path, rows) if _format(Path(path)).by_rows else None


def _format(path: Path) -> Format:
    """**Raises:** for what cannot be a file of a known format."""
    table = formats()
    extension = re.sub(r"^\.\d{3}$", ".000", path.suffix.lower())
    folder = extension in table and table[extension].folder
    if path.is_dir() and not folder:
        raise IsADirectoryError(f"{path} is a folder, a file is wanted")
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if extension not in table:
        raise ValueError(
            f"{path}: unknown format {path.suffix or '(no extension)'}; known are "
            + " ".join(sorted(table))
        )
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    return table[extension]


def _load(path: str | os.PathLike, rows: slice | None = None) -> Mapping[str, Field]:
    """Every channel of a file, or one clear line on why not."""
    path = Path(path)
    family, reader, *_ = _format(path)
    try:
        fields = reader(path) if rows is None else reader(path, rows=rows)
    except (ImportError, PermissionError):
        raise  # not the file's fault
    except Exception as error:  # parsers of binary files raise whatever they stumble over
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path}: not readable as {family}: {reason}") from error
    if not fields:
        raise ValueError(f"{path}: no image in this {family} file; is it complete?")
    return {printable(name): _printable(item) for name, item in fields.items()}


def _printable(item: Field) -> Field:
    """With a name and a unit that a message, a report and a terminal can show."""
    return dataclasses.replace(item, name=printable(item.name), unit=printable(item.unit))


def channels(path: str | os.PathLike) -> dict[str, str]:
    """The channels of a file and their units.

    **Arguments:**

    - `path`: a file of one of the `formats()`.

    **Returns:** unit by channel name, in the order of the file.

    **Raises:** as `read`.
    """
    return {name: item.unit for name, item in _load(path).items()}


def speaks_of_height(channel: str) -> bool:
    """Whether the name of a channel is one of those that makers give to heights."""
    return _HEIGHT.search(channel) is not None


def chosen(path: Path, fields: Mapping[str, Field]) -> str:
    """The channel that is meant when none is named; see `read`."""
    heights = [name for name in fields if speaks_of_height(name)]
    marked = [name for name, item in fields.items() if item.metadata.get("default")]
    retraces = [name for name in heights if name.startswith("HeightRetrace")]
    meant = marked or retraces or heights or (list(fields) if len(fields) == 1 else [])
    if not meant:
        raise ValueError(f"{path}: which channel? There are {listed(fields)}")
    if len(fields) > 1:
        log.info("%s: channel %s of %s", path, meant[0], listed(fields))
    return meant[0]


def read(
    path: str | os.PathLike | Field,
    channel: str | None = None,
    pixel_nm: Pixel | None = None,
) -> Field:
    """Read one channel of a microscope's file.

    Without a channel, the height: the default of a NeXus file; Asylum's `HeightRetrace`; else the
    first channel whose name speaks of height, topography, z sensor or z axis (makers put the
    forward scan first); else the only one.

    **Arguments:**

    - `path`: a file of one of the `formats()`; or a field in memory, which is that.
    - `channel`: name of the channel, one of `channels(path)`.
    - `pixel_nm`: pixel size in nm, one number or `(dy, dx)`, where the file states none; for a file
      which states its own it is a check.

    **Returns:** the field; an image is `[iy, ix]`, y down the rows. What a file does not state is
    not made up: values have the unit `""`, y and x are in pixels (px), and `Field.pixel_nm` raises.

    **Raises:** FileNotFoundError, IsADirectoryError. ImportError where an optional package is
    missing. ValueError for an empty, damaged or unknown file, an unknown channel, or a pixel size
    that differs by more than 0.1 % from the file's.
    """
    fields = {path.name: path} if isinstance(path, Field) else _load(Path(path))
    path = Path(path.name if isinstance(path, Field) else path)
    name = chosen(path, fields) if channel is None else channel
    if name not in fields:
        raise ValueError(f"{path}: {unknown_name('channel', name, fields)}")
    if pixel_nm is None:
        return fields[name]
    image = with_pixel(fields[name], pixel_nm)
    _check_pixel(path, image.pixel_nm, as_pixel(pixel_nm))
    return image


def _check_pixel(path: Path, stated: tuple[float, float], given: tuple[float, float]) -> None:
    if any(abs(g / s - 1) > 1e-3 for s, g in zip(stated, given, strict=True)):
        raise ValueError(
            f"{path}: the file states pixels of {stated[0]:.6g} x {stated[1]:.6g} nm (dy x dx), "
            f"pixel_nm says {given[0]:.6g} x {given[1]:.6g} nm"
        )
