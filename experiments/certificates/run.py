"""How often the errors of every problem hold the truth: a table of the certificates.

    python experiments/certificates/run.py                    # the table of what is stored
    python experiments/certificates/run.py --make cbed sho    # makes these anew, and stores them

Each certificate takes ten minutes at most (`--seconds`); `--draws` runs on each kind of data.
"""

import argparse
import importlib
import json
import logging

from micjax.inference.calibration.certificate import certify
from micjax.inference.calibration.ranks import Claim
from micjax.inference.calibration.stored import place_of, store
from micjax.run.registry import listed


def rows(name: str) -> list[str]:
    """Of a problem: a line for each kind of data."""
    path = place_of(importlib.import_module(f"micjax.problems.{name}"))
    if not path.exists():
        return []
    stored = json.loads(path.read_text(encoding="utf-8"))
    out = []
    for condition, runs in stored["runs"].items():
        claims = {n: Claim(**c) for n, c in stored["claims"][condition].items()}
        half, ninety = (
            ", ".join(f"{_bold(100.0 * getattr(c, of), c, of)}" for c in claims.values())
            for of in ("half", "ninety")
        )
        names = ", ".join(n.removeprefix("forward.") for n in claims)
        failures = stored["failures"][condition]
        lost = f", {failures} without an answer" if failures else ""
        out.append(f"| `{name}` | {condition} | {runs}{lost} | {names} | {half} | {ninety} |")
    return out


def _bold(percent: float, claim: Claim, of: str) -> str:
    text = f"{percent:.0f}"
    return f"**{text}**" if of == "ninety" and not claim.holds() else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", nargs="*", default=[], metavar="PROBLEM")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600.0)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in asked.make:
        module = importlib.import_module(f"micjax.problems.{name}")
        certificate = certify(module, asked.draws, seconds=asked.seconds)
        store(certificate, module, f"python experiments/certificates/run.py --make {name}")
    print(
        "| problem | data | runs | unknowns | 50 % intervals hold (%) | 90 % intervals hold (%) |"
    )
    print("|---|---|---|---|---|---|")
    names = [entry.name for entry in listed() if "." not in entry.name]
    made = {name: rows(name) for name in names}
    print("\n".join(line for lines in made.values() for line in lines))
    print(f"\nNone yet: {', '.join(name for name, lines in made.items() if not lines)}.")


if __name__ == "__main__":
    main()
