"""TIFF: plain stacks, and what ImageJ and OME say of axes and values."""

import contextlib
import logging
import lzma
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from micjax.core.foreign.limits import check_size
from micjax.io.fields import PIXELS, Field, FieldAxis, by_name, nm_per
from micjax.io.packages import third_party
from micjax.io.readers.arrays import bare

log = logging.getLogger(__name__)

_PARK_MAGIC = 50432  # the private TIFF tag by which Park marks its files
_READ = {"imagej", "ome", "shaped", "uniform"}  # of tifffile's flags; the last two say nothing
_STRAIGHT_LINE = 0  # of ImageJ's calibration functions


@contextlib.contextmanager
def whole_tiff(path: Path) -> Iterator:
    """A TIFF file with all its pages, none of which takes more memory than it may.

    **Raises:** ValueError where pages or parts of them are missing, or too large.
    """
    with _complaints() as complaints, third_party("tifffile", ".tiff") as tifffile:
        with tifffile.TiffFile(path) as tiff:
            size = path.stat().st_size
            ends, where = [], set()
            for page in tiff.pages:
                if page.offset in where:
                    raise ValueError("its pages go round in circles")
                where.add(page.offset)
                parts = zip(page.dataoffsets, page.databytecounts, strict=False)
                ends += [start + length for start, length in parts]
            if (after := _page_after_the_last(tiff)) or any("IFD" in line for line in complaints):
                raise ValueError(
                    f"a page is missing ({after or complaints}): is the file cut short?"
                )
            if max(ends, default=0) > size:
                raise ValueError(f"{size} bytes of {max(ends)}: the file is cut short")
            if not all(math.prod(series.shape) for series in tiff.series):
                raise ValueError("an image without pixels")
            check_size(path, 8 * sum(math.prod(series.shape) for series in tiff.series))
            for page in tiff.pages:
                _check_packed(tiff, page)
            yield tiff
    for line in complaints:
        log.warning("%s: %s", path, line)


def _page_after_the_last(tiff) -> int:
    """Where the last page says that there is another one; 0 if it is the last."""
    tiff.filehandle.seek(tiff.pages.next_page_offset)
    offset = tiff.filehandle.read(tiff.tiff.offsetsize)
    return int(struct.unpack(tiff.tiff.offsetformat, offset)[0]) if offset else 0


def _check_packed(tiff, page) -> None:
    """**Raises:** ValueError for compressed parts of which more comes out than they say."""
    unpacker = {8: zlib.decompressobj, 32946: zlib.decompressobj, 34925: lzma.LZMADecompressor}
    if page.compression not in unpacker:
        return
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=False):
        tiff.filehandle.seek(start)
        packed = tiff.filehandle.read(length)
        if len(unpacker[page.compression]().decompress(packed, page.nbytes + 1)) > page.nbytes:
            raise ValueError(f"a part of the image holds more than the {page.nbytes} bytes of all")


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """What tifffile logs of a damaged file, which goes nowhere else."""
    messages: list[str] = []
    handler, logger = logging.Handler(logging.ERROR), logging.getLogger("tifffile")
    handler.emit = lambda record: messages.append(record.getMessage())
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def is_park(path: Path) -> bool:
    """Whether a TIFF was written by a Park microscope."""
    with whole_tiff(path) as tiff:
        return _PARK_MAGIC in tiff.pages[0].tags


def read_tiff(path: Path) -> dict[str, Field]:
    """A TIFF without units, but for those of ImageJ and OME; a stack is read as one array.

    The resolution of other writers is that of a printer.
    """
    with third_party("tifffile", ".tiff") as tifffile, whole_tiff(path) as tiff:
        stack, page = tiff.series[0], tiff.pages[0]
        _refuse_pictures(tiff, stack, page)
        _tell(path, tiff, page)
        data, names = stack.asarray(), stack.axes
        notes = tiff.imagej_metadata or {}
        scales, unit = {}, ""
        if tiff.is_imagej:
            data, unit = _imagej_values(data, notes)
            scales = _imagej_scales(notes, page.tags)
        elif tiff.is_ome:
            scales = _ome_scales(tifffile.xml2dict(tiff.ome_metadata))
    axes = tuple(
        _axis(i, letter, size, *scales.get(letter, ()))
        for i, (letter, size) in enumerate(zip(names, data.shape, strict=True))
    )
    image = bare(data, path.stem)
    return by_name([replace(image, axes=axes, unit=unit, metadata=image.metadata | notes)])


def _refuse_pictures(tiff, stack, page) -> None:
    """Colours are no measurement; three or four images one behind another are no colours."""
    kind = page.photometric.name
    interleaved = stack.axes.endswith("S") and stack.dtype.kind == "u"
    if interleaved and kind in ("RGB", "YCBCR", "CMYK", "CIELAB"):
        raise ValueError(f"a colour picture ({kind}), no measured values")
    if kind == "PALETTE" and not tiff.is_imagej:
        raise ValueError("a picture of palette colours, no measured values")


def _tell(path: Path, tiff, page) -> None:
    """What the file says and nothing here makes use of."""
    if len(tiff.series) > 1:
        log.warning("%s: the first of %d series of images is read", path, len(tiff.series))
    if others := sorted(set(tiff.flags) - _READ):
        log.warning("%s: what %s says in it is not read", path, ", ".join(others))
    if page.photometric.name == "MINISWHITE":
        log.warning("%s: shown with white for the lowest values; they are read as stored", path)
    if not (tiff.is_imagej or tiff.is_ome) and page.tags.get("XResolution") is not None:
        log.info("%s: its resolution is that of a printer, not a pixel size", path)


def _axis(
    i: int, letter: str, size: int, step: float = 1.0, unit: str | None = None, origin: float = 0.0
) -> FieldAxis:
    """Axis `i`, which TIFF calls by a letter; its origin is in pixels."""
    if not (np.isfinite(step) and step > 0 and np.isfinite(origin)):
        raise ValueError(f"axis {letter}: a step of {step:g} {unit}")
    if unit is None:
        unit = PIXELS if letter in "YX" else ""
    name = letter.lower() if letter in "TZYX" else f"axis{i}"
    return FieldAxis(name, step * (np.arange(size) - origin), unit)


def _imagej_values(data: np.ndarray, notes: dict[str, Any]) -> tuple[np.ndarray, str]:
    """The values and their unit by ImageJ's calibration."""
    unit = _text(notes.get("vunit", ""))
    unit = "" if unit.lower() == "gray value" else unit
    if "cf" not in notes:
        return data, unit
    if notes["cf"] != _STRAIGHT_LINE or data.dtype.kind not in "iu":
        raise ValueError(f"values calibrated by function {notes['cf']} of ImageJ; export them")
    return float(notes["c0"]) + float(notes["c1"]) * data.astype(float), unit


def _imagej_scales(notes: dict[str, Any], tags) -> dict[str, tuple]:
    """Step, unit and origin in pixels of the axes that ImageJ has given a unit."""
    x_unit = _text(notes.get("unit", ""))
    scales: dict[str, tuple] = {}
    for name, tag in (("X", "XResolution"), ("Y", "YResolution")):
        unit = _text(notes.get(f"{name.lower()}unit", x_unit))
        if nm_per(unit) is None or tag not in tags:
            continue
        above, below = tags[tag].value  # pixels per unit, as a fraction
        if not above:
            raise ValueError(f"{tag} of {above}/{below} pixels per {unit}")
        scales[name] = (below / above, unit, float(notes.get(f"{name.lower()}origin", 0.0)))
    if nm_per(z_unit := _text(notes.get("zunit", x_unit))) and "spacing" in notes:
        scales["Z"] = (float(notes["spacing"]), z_unit, float(notes.get("zorigin", 0.0)))
    if "finterval" in notes:
        scales["T"] = (float(notes["finterval"]), _text(notes.get("tunit", "s")))
    return scales


def _ome_scales(notes: dict[str, Any]) -> dict[str, tuple]:
    """The same of OME."""
    image = notes["OME"]["Image"]
    pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
    return {
        name: (float(pixels[size]), _text(pixels.get(f"{size}Unit", "µm")))
        for name in "XYZ"
        if (size := f"PhysicalSize{name}") in pixels
    }


def _text(value: Any) -> str:
    return str(value).replace("\\u00B5", "µ").replace("\\u00C5", "Å").strip()
