"""What follows a fit, and must not cost it."""

import logging
from collections.abc import Callable
from typing import TypeVar

from micjax.inference.finite import NonFiniteError

log = logging.getLogger("micjax")
T = TypeVar("T")


def attempt(what: str, of: Callable[..., T], *given, **options) -> T | None:
    """`of(...)`; None, and a warning, if it is interrupted (Ctrl-C) or not finite."""
    try:
        return of(*given, **options)
    except KeyboardInterrupt:
        log.warning("no %s: interrupted; the fit before is kept", what)
    except NonFiniteError as error:
        log.warning("no %s: %s", what, error)
    return None
