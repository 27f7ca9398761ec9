"""Plans of every kind: read from a file, changed by `--set`, checked."""

import copy
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from micjax.core.names import unknown_name
from micjax.run.plans.base import Plan, faults
from micjax.run.plans.explore import ExplorePlan
from micjax.run.plans.simulate import SimulatePlan
from micjax.run.plans.solve import SolvePlan
from micjax.run.plans.train import TrainPlan
from micjax.run.plans.yamls import MOST_CHARACTERS, parse

KINDS: dict[str, type[Plan]] = {
    "solve": SolvePlan,
    "explore": ExplorePlan,
    "simulate": SimulatePlan,
    "train": TrainPlan,
}


def kind_of(given: Mapping[str, Any], where: str) -> type[Plan]:
    """**Raises:** `ValueError` for a kind that there is not."""
    kind = given.get("kind", "solve")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{where}: {unknown_name('kind', str(kind), KINDS)}")
    return KINDS[kind]


def make_plan(given: Mapping[str, Any], where: str) -> Plan:
    """A plan out of plain data, of the kind that they say, `solve` if they say none.

    **Raises:** `ValueError` that names every key which is unknown or of another kind, or the first
    number that is out of its range.
    """
    kind = kind_of(given, where)
    try:
        plan = kind.model_validate(dict(given))
    except pydantic.ValidationError as error:
        raise ValueError(f"{where}: {faults(kind, error)}") from error
    plan.check(where)
    return plan


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
        raise ValueError(f"{path}: a plan is `key: value` lines, such as `problem: NAME`")
    return given


def with_settings(given: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`given` with the `--set` assignments: `engine.steps=50`, `cost.dwell_s=0.1`, `u_A2.Sr=0.008`.

    A name without a point that is no key of a plan to solve is an option of the problem.

    **Raises:** `ValueError` for text that is no assignment, or a table that a plan has not.
    """
    plan = copy.deepcopy(dict(given))
    if not assignments:
        return plan
    kind = kind_of(plan, "the plan")
    for text in assignments:
        name, equals, value = text.partition("=")
        words = [word.strip() for word in name.split(".")]
        if not equals or not all(words):
            raise ValueError(f"--set {text}: write name=value, as in seed=3")
        *tables, last = _path(kind, words, text)
        table = plan
        for word in tables:
            if table.get(word) is None:
                table[word] = {}
            table = table[word]
            if not isinstance(table, dict):
                raise ValueError(f"--set {text}: {word} is no section")
        table[last] = parse(value, f"--set {text}")
    return plan


def _path(kind: type[Plan], words: list[str], text: str) -> list[str]:
    """From the outermost table to the name in the innermost."""
    first, *others = words
    if first in kind.model_fields:
        for i, word in enumerate(words[:-1]):
            if word in kind.DOTTED:  # one name, which has points in it
                return [*words[: i + 1], ".".join(words[i + 1 :])]
        return words
    if others:
        hint = "; a name without a dot is an option of the problem" if kind.OTHERS else ""
        raise ValueError(f"--set {text}: {unknown_name('section', first, kind.tables())}{hint}")
    return words if kind.OTHERS is None else [kind.OTHERS, first]
