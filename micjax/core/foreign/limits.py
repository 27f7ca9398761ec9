"""How much memory and time the data of one file may take, whatever the file says of itself."""

import math
import os
import pathlib

VARIABLE = "MICJAX_FILE_GB"
LEAST_BYTES, GROWTH = 256_000_000, 20  # small files may be packed well, large ones are hardly
BYTES_PER_SECOND, START_SECONDS = 2e8, 2.0


def allowed_bytes(path: str | os.PathLike) -> int:
    """The memory that the data of a file may take: 256 MB, or 20 times its size if that is more.

    **Raises:** `ValueError` where the variable MICJAX_FILE_GB, which overrules it, is no number.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        files = [p for p in (pathlib.Path(path), *pathlib.Path(path).rglob("*")) if p.is_file()]
        return max(LEAST_BYTES, GROWTH * sum(p.stat().st_size for p in files))
    try:
        allowed = 1e9 * float(given)
    except ValueError:
        allowed = math.nan
    if not 0.0 < allowed < math.inf:
        raise ValueError(f"{VARIABLE}={given}: a positive number of gigabytes is wanted")
    return math.ceil(allowed)


def too_large(needed: int, allowed: int) -> str:
    return (
        f"its data would take {needed / 1e9:.3g} GB of memory and {allowed / 1e9:.3g} GB are "
        f"allowed; set {VARIABLE} to allow more"
    )


def check_size(path: str | os.PathLike, needed: int) -> None:
    """**Raises:** `ValueError` where data of so many bytes are more than the file may hold."""
    allowed = allowed_bytes(path)
    if needed > allowed:
        raise ValueError(too_large(needed, allowed))


def allowed_seconds(path: str | os.PathLike) -> int:
    """The processor time that reading a file may take."""
    return math.ceil(START_SECONDS + allowed_bytes(path) / BYTES_PER_SECOND)
