"""Values as JSON has them: NumPy's numbers are numbers, keys are text, and there is no NaN."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def plain(value: Any) -> Any:
    """`value` in dicts, lists, texts, numbers and truth values; what is none of these stays."""
    if isinstance(value, Mapping):
        return {_key(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic) or _is_array(value):
        return plain(np.asarray(value).tolist())
    return str(value) if isinstance(value, pathlib.PurePath) else value


def _is_array(value: Any) -> bool:
    """Of JAX; the keys of random numbers are none."""
    return isinstance(value, jax.Array) and not jnp.issubdtype(value.dtype, jax.dtypes.extended)


def _key(key: Any) -> str:
    found = plain(key)
    return found if isinstance(found, str) else json.dumps(found, default=str)


def dumps(value: Any, **options: Any) -> str:
    """JSON that every reader reads: what is not finite is null, of what JSON does not know there
    is the text."""
    return json.dumps(_finite(plain(value)), default=_known, allow_nan=False, **options)


def _known(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
