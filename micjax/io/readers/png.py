"""PNG and JPEG: pictures of which the grey levels are the data, and nothing says what they mean."""

import logging
from pathlib import Path

import numpy as np

from micjax.core.foreign.limits import check_size
from micjax.io.fields import Field, by_name
from micjax.io.readers.arrays import bare

log = logging.getLogger(__name__)


def read_png(path: Path) -> dict[str, Field]:
    """The grey levels, as they are stored; of a JPEG they are not quite what was measured.

    A picture in colours of which all are grey is one; where it is transparent is not looked at.

    **Raises:** `ValueError` for colours.
    """
    from PIL import Image  # comes with matplotlib, and is slow to import

    with Image.open(path, formats=["PNG", "JPEG"]) as picture:
        check_size(path, 8 * 4 * picture.width * picture.height)
        if picture.format == "JPEG":
            log.info("%s: a JPEG, whose compression has changed the values", path)
        values = np.asarray(picture.convert("RGB") if picture.mode == "P" else picture)
    if values.ndim == 3:
        colours = values[..., :3] if values.shape[2] > 2 else values[..., :1]
        if np.any(np.ptp(colours.astype(int), axis=2)):
            raise ValueError("a picture in colours, no measured values; has it axes, or a scale?")
        log.info("%s: all colours are grey; they are read as one channel", path)
        values = colours[..., 0]
    return by_name([bare(values, path.stem)])
