"""What all plans have in common: strict keys, faults that name them, numbers in their ranges."""

import os
import typing
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import pydantic

from micjax.core.names import plain_name, unknown_name
from micjax.core.ranges import check_ranges

FilePath = Annotated[str, pydantic.AfterValidator(os.path.expanduser)]  # no shell has seen a plan
Name = Annotated[str, pydantic.AfterValidator(plain_name)]  # becomes part of the name of a file


class Section(pydantic.BaseModel):
    """A table of a plan: no keys but its own, frozen."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _empty(cls, given: Any) -> Any:
        """A table of which every line is a comment is null in YAML: it is as if not given."""
        if not isinstance(given, dict):
            return given
        fields = cls.model_fields
        tables = [n for n, f in fields.items() if isinstance(f.default, dict | Section)]
        return {n: v for n, v in given.items() if v is not None or n not in tables}

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, given: Any, info: Any) -> Any:
        """pydantic takes true for 1."""
        if not _may_be_true(cls.model_fields[info.field_name].annotation) and _has_truth(given):
            raise ValueError("true and false are no numbers")
        return given


class Plan(Section):
    """Everything that decides what a run computes, whatever its kind."""

    # of pydantic's `exclude`: numbers that are checked where it is known what they mean
    CHECKED_LATER: ClassVar[dict[str, Any]] = {}
    # tables whose names are the user's: their numbers may have any meaning
    OF_USER: ClassVar[tuple[str, ...]] = ()
    # tables whose names have points in them
    DOTTED: ClassVar[tuple[str, ...]] = ()
    # the table for a name that is no key
    OTHERS: ClassVar[str | None] = None
    # paths of what is told apart by its content
    FILES: ClassVar[tuple[str, ...]] = ()
    # what may be another when a run goes on; where nothing may, a finished one has nothing to do
    MAY_DIFFER: ClassVar[tuple[str, ...]] = ()
    # whether a finished run of the same plan may be computed anew in its folder
    ANEW: ClassVar[bool] = False
    # the file by which one knows that a run was begun in a folder
    MARK: ClassVar[str] = "provenance.json"

    kind: str
    seed: pydantic.NonNegativeInt = 0
    out: FilePath | None = None  # the run folder; without one, a new folder in runs/

    def check(self, where: str) -> None:
        """**Raises:** `ValueError` for the first number that is out of its range."""
        excluded = self.CHECKED_LATER | dict.fromkeys(self.OF_USER, True)
        for name, value in self.model_dump(exclude=excluded).items():
            check_ranges(name, value, where=f"{where}: ")
        for table in self.OF_USER:
            for name, value in self.model_dump(include={table})[table].items():
                check_ranges("", value, False, f"{where}: {table}.{name}")

    def resolved(self) -> dict[str, Any]:
        """Plain data, from which the same plan is made for another folder."""
        return self.model_dump(mode="json", exclude={"out"})

    @classmethod
    def tables(cls) -> list[str]:
        """The keys that hold names and values."""
        return [n for n, field in cls.model_fields.items() if _holds_names(field.annotation)]


def faults(plan: type[Plan], error: pydantic.ValidationError) -> str:
    """Every key that is unknown, missing or of another kind, by its path."""
    return "; ".join(_fault(plan, details) for details in error.errors())


def _fault(plan: type[Plan], error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return unknown_name("key", key, _keys_beside(plan, error["loc"]))
    if error["type"] == "missing":
        return f"the key {key!r} is missing"
    if error["type"] in ("dict_type", "model_type"):
        return f"{key} is {error['input']!r}: a table is wanted, {key}.name=value"
    return f"{key} is {error['input']!r}: {error['msg'].removeprefix('Value error, ')}"


def _keys_beside(section: type[Section], path: tuple[Any, ...]) -> list[str]:
    """The paths that could stand for `path` in the table that it is in."""
    for name in path[:-1]:
        field = section.model_fields.get(name)
        inside = [] if field is None else [k for k in _kinds(field.annotation) if _is_section(k)]
        section = inside[0] if inside else section
    return [".".join(map(str, (*path[:-1], name))) for name in section.model_fields]


def _kinds(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in typing.get_args(annotation):
        yield from _kinds(inner)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _holds_names(annotation: Any) -> bool:
    return any(_is_section(k) or typing.get_origin(k) is dict for k in _kinds(annotation))


def _may_be_true(annotation: Any) -> bool:
    """Whether it has a place for a truth value, or is a table, which looks for itself."""
    return any(kind in (bool, Any) or _is_section(kind) for kind in _kinds(annotation))


def _has_truth(given: Any) -> bool:
    if isinstance(given, dict | list):
        return any(map(_has_truth, given.values() if isinstance(given, dict) else given))
    return isinstance(given, bool)
