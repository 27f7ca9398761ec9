"""YAML as its users mean it: 1e-3 is a number, and a key stands once."""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    pass


# PyYAML follows YAML 1.1, where a number needs a point and a signed exponent: 1e-3 is a string
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"
        r"|^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)$"
        r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = [k for i, k in enumerate(keys) if k in keys[:i]]
    if twice:
        raise yaml.MarkedYAMLError(None, None, f"{twice[0]!r} stands there twice", node.start_mark)
    return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse(text: str, where: str) -> Any:
    """The value of a YAML document.

    **Raises:** `ValueError` with the line, in one line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"{where}{line}: {reason}") from error
