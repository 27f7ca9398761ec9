"""Names a user may have mistyped, and the message that helps."""

import difflib
from collections.abc import Iterable


def unknown_name(what: str, name: str, allowed: Iterable[str]) -> str:
    """`no option 'pixl_nm' (nearest: pixel_nm); there are channel, pixel_nm`."""
    allowed = list(allowed)
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    hint = f" (nearest: {near[0]})" if near else ""
    listed = ", ".join(allowed[:30]) + (", ..." if len(allowed) > 30 else "")
    return f"no {what} {name!r}{hint}; " + (f"there are {listed}" if allowed else "there are none")
