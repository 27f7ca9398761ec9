"""A plan with every choice written out as a comment, for the user to take the comments off."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import yaml

from micjax.core.plain import plain
from micjax.report.text import describe_prior
from micjax.run.jobs.job import JOINT, engine_settings
from micjax.run.plans.priors import parse_prior
from micjax.run.plans.settings import Setting, settings_of
from micjax.run.registry import RegistryEntry

PARTS = (
    "\n# Each data set: a problem, and a file and options as in a plan of its own.",
    "# Without any: the example.",
    "# parts:",
    "#   first: {problem: resonance, file: first.csv}",
    "#   second: {problem: resonance, file: second.csv}",
    "",
    "# What is one unknown in several of them. Its prior and value below are forward.shared.NAME.",
    "# shared:",
    "#   Q: [first.forward.Q, second.forward.Q]",
)


def template(entry: RegistryEntry) -> str:
    """The text of a plan for `entry`, which is valid as it stands."""
    return "\n".join(_lines(entry)) + "\n"


def _lines(entry: RegistryEntry) -> Iterator[str]:
    yield f"# A plan for micjax: {entry.title}"
    yield "#   micjax validate plan.yaml    reads and checks everything, computes nothing"
    yield "#   micjax run plan.yaml         computes"
    yield "# What stands behind one comment sign is the default: take the sign off to change it."
    yield f"problem: {entry.name}"
    load = entry.function("load")
    if entry.reference == JOINT:
        yield from PARTS
    elif load is None:
        yield "\n# This problem reads no files: the plan runs on its made-up example."
    else:
        yield "\n# The microscope's file, seen from the current folder. Without one: the example."
        yield "# file: scan.ibw"
    of_load = {} if load is None else settings_of(load)
    of_problem = {} if entry.reference == JOINT else settings_of(entry.module.problem)
    if of_load or of_problem:
        yield "\noptions:"
    if of_load:
        yield "  ## of reading the file"
        yield from _settings(of_load)
        yield "  ## of the problem"
    yield from _settings({n: s for n, s in of_problem.items() if n not in of_load})
    yield "\nengine:"
    yield from _settings(engine_settings(entry))
    yield from _unknowns(entry)
    yield "\n# seed: 0                # of the example and of all random numbers"
    yield "# precision: float32     # or float64; Laplace and NUTS use float64 anyway"
    yield "# out: runs/my-run       # without it, a new folder in runs/"


def _settings(settings: Mapping[str, Setting]) -> Iterator[str]:
    for setting in settings.values():
        yield from _comment(setting.text)
        yield f"  # {setting.name}: {_literal(plain(setting.default))}"


def _comment(text: str) -> list[str]:
    lines = textwrap.wrap(text, 88)
    return [f"  ## {line}" for line in lines]


def _literal(value: Any) -> str:
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    except yaml.YAMLError:
        return f"... {value!r}"
    return text.removesuffix("\n").removesuffix("...").strip()


def _can_be_read(prior: str) -> bool:
    try:
        parse_prior(prior)
    except ValueError:  # a flat one, or one of arrays
        return False
    return True


def _unknowns(entry: RegistryEntry) -> Iterator[str]:
    problem = entry.module.problem()
    yield "\n# The unknowns and their priors. Name(numbers) of numpyro.distributions replaces one;"
    yield "# null makes an unknown known, at its value below."
    yield "priors:"
    for name, prior in problem.priors.items():
        text = describe_prior(prior)
        yield f"  {'#' if _can_be_read(text) else '##'} {name}: {text}"
    yield "\n# Where the unknowns start, and what the known ones are."
    yield "values:"
    for name, value in problem.values().items():
        if value.size == 1:
            yield f"  # {name}: {float(np.asarray(value).ravel()[0]):.6g}"
