"""Figures as PNG files, each for itself: one that fails must not take the others with it."""

import io
import logging
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

log = logging.getLogger("micjax")
DPI = 110


class Picture(NamedTuple):
    """A figure as the report needs it."""

    title: str
    png: bytes  # empty when the figure failed
    caption: str  # or what went wrong


def save_pictures(
    folder: pathlib.Path, figures: Mapping[str, Figure | Callable[[], Figure] | Any]
) -> list[Picture]:
    """Render every figure and write it to `folder`.

    **Arguments:**

    - `figures`: by title; a function without arguments is called to make its figure.
    """
    pictures = []
    for i, (title, figure) in enumerate(figures.items()):
        try:
            drawn = figure() if callable(figure) else figure
            png, caption = render(drawn), drawn.get_label()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.warning("figure %r failed: %s", title, reason, exc_info=True)
            pictures.append(Picture(title, b"", f"This figure failed: {reason}"))
            continue
        pictures.append(Picture(title, png, caption))
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "figure"
        try:
            (folder / f"{i + 1:02d}-{name}.png").write_bytes(png)
        except OSError as error:  # it can still stand in the report
            log.warning("figure %r was not written: %s", title, error)
    return pictures


def render(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)  # whatever canvas it had: no window, no display
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()
