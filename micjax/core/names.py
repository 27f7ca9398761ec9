"""Names a user may have mistyped, and the message that helps."""

import difflib
import re
from collections.abc import Iterable


def unknown_name(what: str, name: str, allowed: Iterable[str]) -> str:
    """`no option 'pixl_nm' (nearest: pixel_nm); there are channel, pixel_nm`."""
    allowed = list(allowed)
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    hint = f" (nearest: {near[0]})" if near else ""
    there = f"there are {listed(allowed)}" if allowed else "there are none"
    return f"no {what} {name!r}{hint}; {there}"


def listed(names: Iterable[str]) -> str:
    """The first thirty names, for a message."""
    names = list(names)
    return ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")


def printable(text: str) -> str:
    """`text` of somebody's file, characters that cannot be printed written as `\\x1b`."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def plain_name(name: str) -> str:
    """`name`, which may become part of the name of a file.

    **Raises:** `ValueError` for a path, signs that cannot be seen, or nothing.
    """
    if not re.fullmatch(r"[^/\\\x00-\x1f\x7f]{1,100}", name) or name.startswith("."):
        raise ValueError(f"{name[:100]!r} is no name: 1 to 100 signs, no path")
    return name
