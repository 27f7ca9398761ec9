"""Crystal structures from files, by ase, with the occupancies and the thermal motion they tell."""

import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

log = logging.getLogger("micjax")

B_OF_U = 8.0 * np.pi**2  # B = 8 pi^2 u, u the mean square displacement along an axis
OCCUPANCY = ("occupancy", "occupancies")  # names of ase for what a file says of each atom
U_A2, B_A2 = ("u_A2",), ("bfactor", "debye_waller_factors")
PLAIN = ("numbers", "positions", "tags", "spacegroup_kinds", "masses", "residuenames")
PLAIN += ("residuenumbers", "atomtypes", *OCCUPANCY, *U_A2, *B_A2)
COUNTED = ("xyz", "extxyz", "vasp")  # of the names of ase: formats that say how many atoms follow
LONGEST_A = 1e6  # of an edge: 0.1 mm; more is no number, or no crystal
COMPONENTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def read_structure(path: str) -> Any:
    """An `ase.Atoms` from a file of any format of ase: CIF, XYZ, POSCAR, PDB, ...

    Its arrays "occupancy" and "u_A2" (mean square displacement along an axis) are what the file
    says, else 1 and 0; atoms that share a site stand there together. What the file says and nobody
    uses is logged: charges, anisotropy, other structures in it.

    **Raises:** `ImportError` without ase; `FileNotFoundError`; `ValueError` for another file.
    """
    try:
        import ase.io
        from ase.io.formats import filetype
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'micjax[structures]'") from error
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no such structure: {path}")
    try:
        kind = filetype(path)
        if kind == "cif":
            return _of_cif(path)
        if kind in COUNTED:
            _check_counts(path, kind)
        structures = ase.io.read(path, index=":")
        return _of_arrays(path, _mixed(_last(path, structures)))
    except Exception as error:  # its readers raise anything
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} is no structure: {type(error).__name__}: {reason}") from error


def _check_counts(path: str, kind: str) -> None:
    """**Raises:** `ValueError` for more atoms than lines follow: ase would look for all of them."""
    lines = pathlib.Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    if kind == "vasp":  # the numbers of each element follow the edges, or the names of elements
        heads = [i for i in (5, 6) if i < len(lines) and lines[i].split()]
        heads = [i for i in heads if all(map(str.isdecimal, lines[i].split()))][:1]
    else:
        heads = _frames(lines)
    for i in heads:
        count = sum(map(int, lines[i].split()))
        if count > len(lines) - i - 1:
            raise ValueError(f"{str(count)[:20]} atoms, and {len(lines) - i - 1} lines follow")


def _frames(lines: list[str]) -> Iterator[int]:
    """The lines of an XYZ file that say how many atoms follow, behind one of comment."""
    i = 0
    while i < len(lines) and lines[i].strip().isdecimal():
        yield i
        i += int(lines[i]) + 2
        while i < len(lines) and lines[i].lstrip().startswith("VEC"):  # edges of the cell
            i += 1


def _last(path: str, structures: list[Any]) -> Any:
    if not structures:
        raise ValueError("it holds none")
    if len(structures) > 1:
        log.warning("%s holds %d structures; the last one is taken", path, len(structures))
    return structures[-1]


def _mixed(atoms: Any) -> Any:
    """With every element of a site: ase keeps the first as an atom, what all share in its notes.

    **Raises:** `ValueError` for shared sites of which nothing says where they are.
    """
    notes = atoms.info.get("occupancy")
    shares = {str(k): v for k, v in notes.items()} if isinstance(notes, dict) else {}
    if all(list(share.values()) == [1] for share in shares.values()):
        return atoms
    if "spacegroup_kinds" not in atoms.arrays:
        raise ValueError("it has occupancies and does not say of which atoms; give the CIF file")
    kinds = [str(k) for k in atoms.arrays["spacegroup_kinds"]]
    parts = [(i, *part) for i, k in enumerate(kinds) for part in shares[k].items()]
    rows, symbols, occupancy = zip(*parts, strict=True)
    mixed = atoms[list(rows)]
    mixed.set_chemical_symbols(symbols)
    mixed.set_array("occupancy", np.asarray(occupancy, float))
    return mixed


def _of_arrays(path: str, atoms: Any) -> Any:
    """With what the file says of each atom under the two names."""
    given = {n: np.asarray(a) for n, a in atoms.arrays.items()}
    occupancy = next((given[n] for n in OCCUPANCY if n in given), np.ones(len(atoms)))
    u_A2 = next((given[n] for n in U_A2 if n in given), np.zeros(len(atoms)))
    u_A2 = next((given[n] / B_OF_U for n in B_A2 if n in given), u_A2)
    unused = [n for n in given if n not in PLAIN and np.any(given[n])]
    if unused:
        log.warning("%s: %s of its atoms are not used", path, ", ".join(unused))
    if str(path).lower().endswith((".pdb", ".ent")):
        _asymmetric_unit(path)
    return _told(path, atoms, _known(path, "occupancy", occupancy, 1.0), u_A2.astype(float))


def _asymmetric_unit(path: str) -> None:
    """A warning where a PDB file has a symmetry, which nobody applies."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        group = next((line[55:66].strip() for line in lines if line.startswith("CRYST1")), "")
    if group.replace(" ", "") not in ("", "1", "P1"):
        log.warning("%s: the atoms it lists, without the symmetry of %s", path, group)


def _of_cif(path: str) -> Any:
    """Each site of the file with all its equivalents, those that share a place as well."""
    import ase
    import ase.io.cif

    with open(path, "rb") as file:
        block = _last(path, [b for b in ase.io.cif.parse_cif(file) if b.has_structure()])
    _check_places(block)
    sites = block.get_unsymmetrized_structure()
    if sites.cell.rank != 3 or not np.all(np.abs(sites.cell) < LONGEST_A):
        raise ValueError(f"it has no unit cell: {sites.cell.tolist()}")
    group, fractions, of_site = block.get_spacegroup(True), [], []
    for i, place in enumerate(sites.get_scaled_positions(wrap=False)):
        alike, _ = group.equivalent_sites([place], onduplicates="keep", symprec=1e-3)
        fractions.append(alike)
        of_site += [i] * len(alike)
    atoms = ase.Atoms(
        sites.numbers[of_site],
        scaled_positions=np.concatenate(fractions),
        cell=sites.cell,
        pbc=True,
    )
    occupancy = block.get("_atom_site_occupancy", [1.0] * len(sites))
    occupancy = _known(path, "occupancy", occupancy, 1.0)
    if any(c in str(s) for s in block.get("_atom_site_type_symbol", ()) for c in "+-"):
        log.warning("%s: its ions are taken as neutral atoms", path)
    u_A2 = _displacements(path, block, sites)
    return _told(path, atoms, occupancy[of_site], u_A2[of_site])


def _check_places(block: Any) -> None:
    """**Raises:** `ValueError` for the first site whose coordinates are no numbers."""
    columns = [block.get(f"_atom_site_{name}") for name in ("fract_x", "fract_y", "fract_z")]
    if None in columns:
        return
    labels = block.get("_atom_site_label", range(len(columns[0])))
    for label, place in zip(labels, zip(*columns, strict=True), strict=False):
        if not np.all(np.isfinite(_numbers(place))):
            raise ValueError(f"site {label} lies at {', '.join(map(str, place))}: no numbers")


def _displacements(path: str, block: Any, sites: Any) -> np.ndarray:
    """The mean square displacement of each site along an axis: U_iso, B_iso, or the mean of U_ij
    or B_ij (Trueblood et al. 1996)."""
    u = np.full(len(sites), np.nan)
    labels = block.get("_atom_site_label", [""] * len(sites))
    for name, over in (("u", 1.0), ("b", B_OF_U)):
        iso = block.get(f"_atom_site_{name}_iso_or_equiv")
        if iso is not None:
            u = np.where(np.isnan(u), _numbers(iso) / over, u)
        tensors = [block.get(f"_atom_site_aniso_{name}_{i + 1}{j + 1}") for i, j in COMPONENTS]
        if None in tensors:
            continue
        log.warning("%s: anisotropic displacements are taken as their mean", path)
        edges, reciprocal = np.asarray(sites.cell), sites.cell.reciprocal().lengths()
        for k, label in enumerate(block["_atom_site_aniso_label"]):
            tensor = np.zeros((3, 3))
            for (i, j), values in zip(COMPONENTS, tensors, strict=True):
                tensor[i, j] = tensor[j, i] = _numbers(values)[k] / over
            scaled = tensor * np.outer(reciprocal, reciprocal)
            mean = np.sum(scaled * (edges @ edges.T)) / 3.0
            u = np.where([site_label == label for site_label in labels] & np.isnan(u), mean, u)
    named = [
        n for n in block if re.search(r"_atom_site_(aniso_)?(u|b|beta)(_|$)", n, re.IGNORECASE)
    ]
    if named and np.all(np.isnan(u)):
        log.warning("%s: no displacement can be read from %s", path, ", ".join(named))
    return u if np.all(np.isnan(u)) else _known(path, "displacement", u, 0.0)


def _numbers(values: Any) -> np.ndarray:
    """NaN for what a CIF does not know, "?" or "."."""
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], float)


def _known(path: str, what: str, values: Any, otherwise: float) -> np.ndarray:
    values = _numbers(values)
    if unknown := int(np.isnan(values).sum()):
        log.warning("%s: no %s of %d atoms; %g is taken", path, what, unknown, otherwise)
    return np.where(np.isnan(values), otherwise, values)


def _told(path: str, atoms: Any, occupancy: np.ndarray, u_A2: np.ndarray) -> Any:
    """With the two arrays, and a line of the log where they say something."""
    u_A2 = np.where(np.isnan(u_A2), 0.0, u_A2)
    for name in ("occupancy", "u_A2"):
        if name in atoms.arrays:
            del atoms.arrays[name]
    for name, values, usual in (("occupancy", occupancy, 1.0), ("u_A2", u_A2, 0.0)):
        if not np.all((values >= 0.0) & (values < np.inf)) or (
            name == "occupancy" and np.any(values > 1.0 + 1e-3)
        ):
            raise ValueError(f"{name} from {values.min():g} to {values.max():g}")
        atoms.set_array(name, values)
        if np.any(values != usual):
            symbols = np.array(atoms.get_chemical_symbols())
            parts = [f"{s} {values[symbols == s].mean():.4g}" for s in sorted(set(symbols))]
            log.info("%s: %s of the file, on average: %s", path, name, ", ".join(parts))
    return atoms
