"""Crystal structures from files, by ase."""

import pathlib
from typing import Any


def read_structure(path: str) -> Any:
    """An `ase.Atoms` from a file of any format of ase: CIF, XYZ, POSCAR, PDB, ...

    **Raises:** `ImportError` without ase; `FileNotFoundError`; `ValueError` for another file.
    """
    try:
        import ase.io
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'micjax[structures]'") from error
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no such structure: {path}")
    try:
        return ase.io.read(path)
    except Exception as error:  # its readers raise anything
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} is no structure: {type(error).__name__}: {reason}") from error
