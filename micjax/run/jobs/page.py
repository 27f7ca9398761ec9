"""The figures and the page of a run of any kind."""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from micjax.report.page import Page, write_page
from micjax.report.pictures import save_pictures
from micjax.run.folder import RunFolder


def write_report(folder: RunFolder, figures: Mapping[str, Any], **page: Any) -> pathlib.Path:
    """`figures/` and `report.html`, with what was said so far.

    **Arguments:**

    - `page`: the other fields of `micjax.report.page.Page`.

    **Raises:** `OSError` when something cannot be written.
    """
    shutil.rmtree(folder / "figures", ignore_errors=True)  # of an earlier run in this folder
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    pictures = save_pictures(folder / "figures", figures)
    return write_page(folder / "report.html", Page(**page, pictures=pictures, log=folder.log()))
