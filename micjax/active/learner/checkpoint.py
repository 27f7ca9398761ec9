"""What a learner was told, in a file that only the same learner takes up."""

import json
import pathlib
from typing import Any

from micjax.core.files import replaced

FORMAT = "micjax learner 3"


def write(file: pathlib.Path, identity: dict[str, Any], content: dict[str, Any]) -> None:
    """All of it, or the old file stays."""
    text = json.dumps({"format": FORMAT, "settings": identity, **content})
    with replaced(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def read(file: pathlib.Path | None, identity: dict[str, Any]) -> dict[str, Any]:
    """The content of `write`.

    **Raises:** `FileNotFoundError`; `ValueError` for another file, or one of another learner.
    """
    if file is None or not file.is_file():
        raise FileNotFoundError(f"no such checkpoint: {file}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no checkpoint of a learner: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{file} is no checkpoint of a learner")
    earlier, now = content["settings"], json.loads(json.dumps(identity))
    if earlier != now:
        other = sorted(k for k in {**earlier, **now} if earlier.get(k) != now.get(k))
        differ = "; ".join(f"{k} is {now.get(k)} and was {earlier.get(k)}" for k in other)
        raise ValueError(f"{file} is of a learner with other {', '.join(other)}: {differ}")
    return content
