"""The figures, the table and the page of a run of any kind."""

import csv
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from micjax.report.page import Page, write_page
from micjax.report.pictures import save_pictures
from micjax.run.folder import TABLE, RunFolder


def write_table(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All rows with the columns of any of them; without rows no file stays.

    **Raises:** `OSError`.
    """
    if not rows:
        path.unlink(missing_ok=True)
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_report(folder: RunFolder, figures: Mapping[str, Any], **page: Any) -> pathlib.Path:
    """`figures/`, `table.csv` and `report.html`, with what was said so far.

    **Arguments:**

    - `page`: the other fields of `micjax.report.page.Page`.

    **Raises:** `OSError` when something cannot be written.
    """
    shutil.rmtree(folder / "figures", ignore_errors=True)  # of an earlier run in this folder
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    pictures = save_pictures(folder / "figures", figures)
    write_table(folder / TABLE, page["solution"].table)
    return write_page(folder / "report.html", Page(**page, pictures=pictures, log=folder.log()))
