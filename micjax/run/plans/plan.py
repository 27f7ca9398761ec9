"""A plan: everything that decides what a run computes, in one strict and frozen object."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pydantic

from micjax.core.names import unknown_name
from micjax.run.plans.yamls import MOST_CHARACTERS, parse

SECTIONS = ("options", "engine", "priors", "values")


class Plan(pydantic.BaseModel):
    """What to solve, with which data, settings and seed; see docs/plans.md."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    problem: str
    file: str | None = None  # without one, the example of the problem is solved
    options: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    priors: dict[str, str | None] = {}  # "LogNormal(3, 0.5)"; None: known
    values: dict[str, float | list] = {}  # where unknowns start, what the known ones are
    seed: pydantic.NonNegativeInt = 0
    # float32 is what JAX and its accelerators are made for; Laplace and NUTS use float64 anyway
    precision: Literal["float32", "float64"] = "float32"
    out: str | None = None  # the run folder; without one, a new folder in runs/

    @pydantic.field_validator(*SECTIONS, mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        return {} if value is None else value  # a section of which every line is a comment

    @pydantic.field_validator("file", "out")
    @classmethod
    def _home(cls, value: str | None) -> str | None:
        return None if value is None else os.path.expanduser(value)  # no shell has seen a plan


def make_plan(given: Mapping[str, Any], where: str) -> Plan:
    """A plan out of plain data.

    **Raises:** `ValueError` that names every key which is unknown or of another kind.
    """
    try:
        return Plan.model_validate(dict(given))
    except pydantic.ValidationError as error:
        raise ValueError(f"{where}: " + "; ".join(map(_fault, error.errors()))) from error


def _fault(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return unknown_name("key", key, Plan.model_fields)
    if error["type"] == "missing":
        return f"the key {key!r} is missing"
    return f"{key} is {error['input']!r}: {error['msg']}"


def read_plan(path: str | pathlib.Path) -> dict[str, Any]:
    """The plain data of a plan file, YAML or JSON.

    **Raises:** `OSError` when it cannot be read; `ValueError` for broken YAML or no mapping.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such plan: {path}")
    if path.stat().st_size > 4 * MOST_CHARACTERS:  # of four bytes at most
        raise ValueError(f"{path}: {path.stat().st_size} bytes are too many for a plan")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a plan is a text file: {error}") from error
    given = parse(text, str(path))
    if not isinstance(given, dict):
        raise ValueError(f"{path}: a plan is `key: value` lines, the first one `problem: NAME`")
    return given


def with_settings(given: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`given` with the `--set` assignments: `engine.steps=50`, `seed=3`, `pixel_nm=2`.

    A name that begins with no key of a plan is an option of the problem.

    **Raises:** `ValueError` for text that is no assignment.
    """
    plan = {k: dict(v or {}) if k in SECTIONS and _is_section(v) else v for k, v in given.items()}
    for text in assignments:
        name, equals, value = text.partition("=")
        root, dot, rest = (part.strip() for part in name.strip().partition("."))
        if not equals or not root or (dot and not rest):
            raise ValueError(f"--set {text}: write name=value, as in engine.steps=50")
        parsed = parse(value, f"--set {text}")
        if root in SECTIONS:
            if not rest:
                raise ValueError(f"--set {text}: write {root}.name=value")
            plan.setdefault(root, {})[rest] = parsed
        elif dot:
            raise ValueError(
                f"--set {text}: {unknown_name('section', root, SECTIONS)}; "
                "a name without a dot is an option of the problem"
            )
        elif root in Plan.model_fields:
            plan[root] = parsed
        else:
            plan.setdefault("options", {})[root] = parsed
    return plan


def _is_section(value: Any) -> bool:
    return value is None or isinstance(value, dict)
