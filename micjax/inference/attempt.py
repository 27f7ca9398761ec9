"""What follows a fit, and must not cost it."""

import logging
from collections.abc import Callable
from typing import TypeVar

from micjax.core.progress import until_interrupted

log = logging.getLogger("micjax")
T = TypeVar("T")


def attempt(what: str, of: Callable[..., T], *given, **options) -> T | None:
    """`of(...)`; None, and a warning, if it fails for any reason or is interrupted (Ctrl-C)."""
    try:
        with until_interrupted() as interruption:
            return of(*given, **options)
    except Exception as error:  # out of memory comes as an error of XLA's own
        reason = " ".join(str(error).split())[:500]
        log.warning("no %s: %s: %s", what, type(error).__name__, reason)
        log.debug("%s", what, exc_info=True)
    if interruption.happened:
        log.warning("no %s: interrupted; the fit before is kept", what)
    return None
