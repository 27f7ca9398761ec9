"""Certificates that stand beside the problems they are of, and what a report quotes of them."""

import json
import logging
import pathlib
from collections.abc import Collection, Iterator
from types import ModuleType
from typing import Any

from micjax.core.files import replaced
from micjax.core.names import listed
from micjax.core.plain import dumps
from micjax.inference.calibration.certificate import CLEAN, Certificate
from micjax.inference.calibration.ranks import Claim

log = logging.getLogger("micjax")


def place_of(module: ModuleType) -> pathlib.Path:
    """The file of the certificate of a problem module: in its package, or beside it."""
    path = pathlib.Path(module.__file__)
    own = path.stem == "__init__"
    return path.with_name("certificate.json" if own else f"{path.stem}.certificate.json")


def store(certificate: Certificate, module: ModuleType, command: str) -> pathlib.Path:
    """What was found, without the ranks that say it, beside the module.

    **Arguments:**

    - `command`: that made it.
    """
    claims = {
        condition: {n: c._asdict() for n, c in certificate.claims(condition).items()}
        for condition in certificate.runs
    }
    facts = certificate.facts | {"command": command}
    content = {"facts": facts, "runs": certificate.runs, "failures": certificate.failures}
    path = place_of(module)
    with replaced(path) as unfinished:
        unfinished.write_text(dumps(content | {"claims": claims}, indent=1) + "\n", "utf-8")
    return path


def quoted(module: ModuleType, unknowns: Collection[str]) -> str | None:
    """The certificate of a problem in a sentence or two, of these unknowns; None without one."""
    if getattr(module, "__file__", None) is None:  # made in memory
        return None
    path = place_of(module)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = list(_parts(content, unknowns))
        facts = content["facts"]
        version, date = facts["versions"]["micjax"], facts["date"][:10]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is no certificate: %r", path, error)
        return None
    if not parts:
        return None
    of = f"Certificate (micjax {version}, {date}): of data whose truth is known"
    return f"{of}, {'; '.join(parts)}."


def _parts(content: dict[str, Any], unknowns: Collection[str]) -> Iterator[str]:
    for condition, runs in content["runs"].items():
        claims = {n: Claim(**c) for n, c in content["claims"][condition].items() if n in unknowns}
        if not claims:
            continue
        shares = [c.ninety for c in claims.values()]
        low, high = _percent(min(shares)), _percent(max(shares))
        held = low if low == high else f"{low.removesuffix(' %')} to {high}"
        wrong = {n: c for n, c in claims.items() if not c.holds()}
        if condition != CLEAN:
            factor = max(c.widening for c in claims.values())
            wider = f" ({factor:.2g} times as wide they would all hold it)" if wrong else ""
            yield f"with {condition} in {held}{wider}"
            continue
        named = [
            f"{n.removeprefix('forward.')} {_percent(c.ninety)} (should be {c.widening:.2g} times "
            "as wide)"
            for n, c in wrong.items()
        ]
        least = f", least {listed(named)}" if named else ""
        yield f"90 % intervals held it in {held} of {runs} runs{least}"


def _percent(share: float) -> str:
    return f"{100.0 * share:.0f} %"
