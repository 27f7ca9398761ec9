"""The settings a function takes, read off its signature: names, defaults, kinds, explanations."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

import pydantic

from micjax.core.names import unknown_name
from micjax.core.ranges import check_ranges

NO_DEFAULT = inspect.Parameter.empty
FINITE = pydantic.ConfigDict(allow_inf_nan=False)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One keyword of a function: its default, its type if it states one, and what it is for."""

    name: str
    default: Any
    kind: Any  # the annotation, NO_DEFAULT without one
    text: str


def settings_of(function: Callable[..., Any], skip: tuple[str, ...] = ()) -> dict[str, Setting]:
    """The keywords of `function` which have a default, without those in `skip`."""
    kinds, texts = _hints(function), _explanations(inspect.getdoc(function) or "")
    return {
        name: Setting(name, p.default, kinds.get(name, NO_DEFAULT), texts.get(name, ""))
        for name, p in inspect.signature(function).parameters.items()
        if p.default is not NO_DEFAULT and name not in skip
    }


def takes_anything(function: Callable[..., Any]) -> bool:
    """Whether there is a `**kwargs`."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def checked(
    what: str, given: Mapping[str, Any], allowed: Mapping[str, Setting], ours: bool = True
) -> dict[str, Any]:
    """`given` with every value of the kind that its setting wants, and within its range.

    The range is that of `micjax.core.ranges`, unless the annotation states limits of its own:
    `Annotated[float, pydantic.Field(ge=0.1)]`. A default is the word of the function.

    **Arguments:**

    - `ours`: whether the function is one of micjax, where every word has the meaning of the table.

    **Raises:** `ValueError` for an unknown name (with the nearest), a value of another kind or one
    that is out of range.
    """
    for name in given:
        if name not in allowed:
            raise ValueError(unknown_name(what, name, allowed))
    values = {name: _as_kind(what, value, allowed[name]) for name, value in given.items()}
    for name, value in values.items():
        if not _has_limits(allowed[name].kind) and not _same(value, allowed[name].default):
            check_ranges(name, value, ours, f"{what}: ")
    return values


def _has_limits(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Annotated


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and isinstance(value, int | float) and value == default


def _as_kind(what: str, value: Any, setting: Setting) -> Any:
    kind = _kind_of_default(setting.default) if setting.kind is NO_DEFAULT else setting.kind
    if kind is NO_DEFAULT or (value is None and setting.default is None):
        return value  # `channel: str = None` is common, and a resolved plan says null
    try:
        config = FINITE if _has_limits(kind) else None
        known = pydantic.TypeAdapter(kind, config=config).validate_python(value)
    except pydantic.ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ValueError(f"{what} {setting.name!r} is {value!r}: {reason}") from error
    except (pydantic.PydanticSchemaGenerationError, pydantic.PydanticUserError):
        return value  # a kind that pydantic does not know, such as an array
    if isinstance(value, bool) and isinstance(known, int | float) and not isinstance(known, bool):
        raise ValueError(f"{what} {setting.name!r} is {value!r}: true and false are no numbers")
    return known


def _kind_of_default(default: Any) -> Any:
    """What an option without annotation may be: numbers and lists where the default is one."""
    if isinstance(default, bool):
        return bool
    if isinstance(default, int):
        return int
    if isinstance(default, float):
        return float | list
    if isinstance(default, tuple):
        return tuple  # YAML and JSON know lists only
    return str if isinstance(default, str) else NO_DEFAULT


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # shapes in quotes, or names imported for the type checker only
        return {}


def _explanations(doc: str) -> dict[str, str]:
    """`{name: text}` from the lines "- `name`: text" of a docstring."""
    items = re.findall(
        r"^\s*- ((?:`\w+`(?:, )?)+):\s*(.+?)(?=^\s*- `|\n\s*\n|\Z)", doc, re.M | re.S
    )
    return {
        name: " ".join(text.split()) for names, text in items for name in re.findall(r"\w+", names)
    }
