"""YAML as its users mean it: 1e-3 is a number, 1:30 and a date are text, and a key stands once.

A document is counted before it is built: an alias of an alias of an alias is a few lines of text
and more values than any memory holds.
"""

import re
from typing import Any

import yaml

MOST_CHARACTERS = 1_000_000
MOST_VALUES = 50_000  # keys, numbers, texts and collections, those of aliases each time
DEEPEST = 40  # collections inside each other
TAG = "tag:yaml.org,2002:"
KINDS = ("null", "bool", "int", "float", "str", "seq", "map")  # those of JSON


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # the same in C, where it is there
    pass


# PyYAML follows YAML 1.1: 1e-3 is text, since a number needs a point and a signed exponent; 1:30 is
# 90, 010 is 8, and 2026-11-28 is a date
_NUMBERS = {
    f"{TAG}int": r"[-+]?[0-9][0-9_]*",
    f"{TAG}float": r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in (*_NUMBERS, f"{TAG}timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _form in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_form})$"), list("-+0123456789."))
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(TAG) in KINDS
}


def _mapping(loader: yaml.constructor.SafeConstructor, node: yaml.MappingNode) -> dict:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(None, None, "a key is one word", key.start_mark)
        if key.value in seen:
            message = f"{key.value!r} stands there twice"
            raise yaml.MarkedYAMLError(None, None, message, key.start_mark)
        seen.add(key.value)
    return dict(yaml.constructor.SafeConstructor.construct_mapping(loader, node, deep=True))


def _whole(loader: yaml.constructor.SafeConstructor, node: yaml.ScalarNode) -> int:
    try:
        return int(node.value)
    except ValueError as error:  # Python reads a few thousand digits
        message = f"a whole number of {len(node.value)} digits"
        raise yaml.MarkedYAMLError(None, None, message, node.start_mark) from error


_Loader.add_constructor(f"{TAG}map", _mapping)
_Loader.add_constructor(f"{TAG}int", _whole)


def parse(text: str, where: str) -> Any:
    """The value of a YAML document.

    **Raises:** `ValueError` with the line, in one line; also for what is too long, too deep or has
    too many values.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{where}: {len(text)} characters; {MOST_CHARACTERS} are allowed")
    try:
        _count(text)
        return _unshared(yaml.load(text, Loader=_Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"{where}{line}: {reason}") from error


def _unshared(value: Any) -> Any:
    """An alias is a copy: what is set in one place is not set in the other."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _count(text: str) -> None:
    """**Raises:** `yaml.YAMLError` for a document that is too deep or would have too many values.

    It reads the events and builds nothing.
    """
    sizes: dict[str, int] = {}  # of what has an anchor
    open_ones: list[tuple[str | None, int]] = []  # anchor, and what was counted before it
    total = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_ones.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_ones.pop()
            sizes |= {} if anchor is None else {anchor: total - before}
        elif isinstance(event, yaml.ScalarEvent):
            sizes |= {} if event.anchor is None else {event.anchor: 1}
            total += 1
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_ones):
                raise _fault(event, f"*{event.anchor} stands inside of what it stands for")
            total += sizes.get(event.anchor, 1)
        if len(open_ones) > DEEPEST:
            raise _fault(event, f"more than {DEEPEST} lists or mappings inside each other")
        if total > MOST_VALUES:
            raise _fault(event, f"more than {MOST_VALUES} values, those of aliases included")


def _fault(event: yaml.Event, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, text, event.start_mark)
