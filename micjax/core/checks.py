"""What a setting has to be, said in one way everywhere."""

import numpy as np


def positive(**values) -> None:
    """**Raises:** `ValueError` for the first of the values that is not finite and above 0, or an
    array with such an element."""
    for name, value in values.items():
        if not np.all(np.isfinite(value) & (np.asarray(value) > 0)):
            raise ValueError(f"{name} = {value}: must be positive")


def not_negative(**values) -> None:
    """**Raises:** `ValueError` for the first of the values that is not finite or below 0."""
    for name, value in values.items():
        if not np.all(np.isfinite(value) & (np.asarray(value) >= 0)):
            raise ValueError(f"{name} = {value}: must not be negative")
