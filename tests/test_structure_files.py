"""What a structure file says of its atoms is used, or told; cells with right angles."""

import logging

import numpy as np
import pytest

from micjax.physics.electrons.potentials.layers import atoms_of, layers, potential_VA

pytest.importorskip("ase", reason="reading structures needs micjax[structures]")
import ase  # noqa: E402
import ase.io  # noqa: E402
from ase.build import bulk, mx2  # noqa: E402

from micjax.io.readers.orthogonal import orthogonal  # noqa: E402
from micjax.io.readers.structures import read_structure  # noqa: E402
from micjax.run.jobs.simulate.job import prepare  # noqa: E402
from micjax.run.plans.plan import make_plan  # noqa: E402

A = 3.95
CIF = """data_mixed
_cell_length_a 3.95
_cell_length_b 3.95
_cell_length_c 3.95
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M '{group}'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
_atom_site_{name}_iso_or_equiv
{sites}
"""
MIXED = """Ba1 Ba 0 0 0 0.6 {0}
Sr1 Sr 0 0 0 0.4 {0}
Ti1 Ti 0.5 0.5 0.5 1.0 {1}
O1 O 0.5 0.5 0 0.8 {2}
O2 O 0.5 0 0.5 1.0 {2}
O3 O 0 0.5 0.5 1.0 {2}"""
SITES = A * np.array(
    [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
)
U_A2 = np.array([0.006, 0.006, 0.004, 0.01, 0.01, 0.01])


def written(path, name="U", over=1.0, group="P 1", sites=None):
    u = [f"{over * value:.6f}" for value in (0.006, 0.004, 0.01)]
    text = CIF.format(group=group, name=name, sites=(sites or MIXED).format(*u))
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(("name", "over"), [("U", 1.0), ("B", 8.0 * np.pi**2)])
def test_occupancies_and_thermal_motion_of_a_cif(tmp_path, caplog, name, over):
    """A mixed site scatters as the mean of its elements, damped as the file says."""
    path = written(tmp_path / "mixed.cif", name, over)
    with caplog.at_level(logging.INFO, "micjax"):
        setup = prepare(
            make_plan(
                {
                    "kind": "simulate",
                    "what": "hrtem",
                    "structure": path,
                    "sampling_A": 0.2,
                    "finer": 1,
                },
                "test",
            )
        )
    assert "occupancy of the file" in caplog.text and "u_A2 of the file" in caplog.text
    assert "share a site" in caplog.text
    assert setup.atoms.numbers == (56, 38, 22, 8, 8, 8)
    np.testing.assert_allclose(setup.atoms.occupancy, [0.6, 0.4, 1.0, 0.8, 1.0, 1.0])
    np.testing.assert_allclose(setup.atoms.u_A2, U_A2[:, None] * np.ones(3), rtol=1e-3)
    np.testing.assert_allclose(setup.atoms.position_A, SITES, atol=1e-12)
    thickness = np.full(2, A / 2)
    found = potential_VA(setup.atoms, (20, 20), thickness)
    parts = [
        potential_VA(atoms_of(ase.Atoms(numbers, at, cell=[A] * 3)), (20, 20), thickness)
        for numbers, at in (([56], SITES[:1]), ([38], SITES[1:2]))
    ]
    column = [float(v[0].mean()) for v in (found, *parts)]  # the mean knows no damping
    rest = potential_VA(atoms_of(ase.Atoms([8], SITES[3:4], cell=[A] * 3)), (20, 20), thickness)
    expected = 0.6 * column[1] + 0.4 * column[2] + 0.8 * float(rest[0].mean())
    np.testing.assert_allclose(column[0], expected, rtol=1e-6)


def test_a_setting_is_stronger_than_the_file(tmp_path):
    path = written(tmp_path / "mixed.cif")
    plan = {"kind": "simulate", "what": "hrtem", "structure": path, "sampling_A": 0.4, "finer": 1}
    for setting, expected in ((0.02, 0.02), ({"Ti": 0.03}, np.where(U_A2 == 0.004, 0.03, U_A2))):
        setup = prepare(make_plan(plan | {"u_A2": setting}, "test"))
        np.testing.assert_allclose(setup.atoms.u_A2[:, 0], expected * np.ones(6), rtol=1e-6)


def test_symmetry_brings_what_a_site_has(tmp_path):
    sites = "Na1 Na1+ 0 0 0 0.9 {0}\nK1 K1+ 0 0 0 0.1 {0}\nCl1 Cl1- 0.5 0.5 0.5 1.0 ?"
    found = read_structure(written(tmp_path / "salt.cif", group="F m -3 m", sites=sites))
    assert found.get_chemical_formula("hill") == "Cl4K4Na4"
    symbols = np.array(found.get_chemical_symbols())
    for symbol, occupancy, u in (("Na", 0.9, 0.006), ("K", 0.1, 0.006), ("Cl", 1.0, 0.0)):
        np.testing.assert_allclose(found.arrays["occupancy"][symbols == symbol], occupancy)
        np.testing.assert_allclose(found.arrays["u_A2"][symbols == symbol], u)


def test_anisotropic_displacements_are_their_mean(tmp_path, caplog):
    """A third of the trace of the tensor in space, whatever the angles of the cell."""
    tensor = np.diag([0.01, 0.02, 0.06])  # along x, y, z of space
    cell = ase.cell.Cell.new([3.0, 3.0, 5.0, 90, 90, 120])
    reciprocal = cell.reciprocal()
    edges = np.asarray(cell) * np.linalg.norm(reciprocal, axis=1)[:, None]
    u = np.linalg.inv(edges.T) @ tensor @ np.linalg.inv(edges)
    (tmp_path / "a.cif").write_text(
        "data_a\n_cell_length_a 3\n_cell_length_b 3\n_cell_length_c 5\n_cell_angle_alpha 90\n"
        "_cell_angle_beta 90\n_cell_angle_gamma 120\n_symmetry_space_group_name_H-M 'P 1'\nloop_\n"
        "_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\nMg1 0 0 0\n"
        "loop_\n_atom_site_aniso_label\n"
        + "".join(f"_atom_site_aniso_U_{n}\n" for n in ("11", "22", "33", "12", "13", "23"))
        + "Mg1 "
        + " ".join(f"{u[i, j]:.8f}" for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)))
        + "\n"
    )
    found = read_structure(str(tmp_path / "a.cif"))
    np.testing.assert_allclose(found.arrays["u_A2"], 0.03, rtol=1e-5)
    assert "anisotropic displacements are taken as their mean" in caplog.text


def test_what_is_not_used_is_told(tmp_path, caplog):
    atoms = ase.Atoms("NaCl", positions=[[0, 0, 0], [2, 2, 2]], cell=[4.0] * 3, pbc=True)
    charged = atoms.copy()
    charged.set_initial_charges([1.0, -1.0])
    ase.io.write(tmp_path / "two.xyz", [atoms, charged])
    read_structure(str(tmp_path / "two.xyz"))
    assert "holds 2 structures; the last one is taken" in caplog.text
    assert "initial_charges of its atoms are not used" in caplog.text
    caplog.clear()
    atoms.set_array("occupancy", np.array([0.5, 1.0]))
    atoms.set_array("bfactor", np.array([0.4, 0.8]))
    ase.io.write(tmp_path / "one.pdb", atoms)
    found = read_structure(str(tmp_path / "one.pdb"))
    np.testing.assert_allclose(found.arrays["occupancy"], [0.5, 1.0])
    np.testing.assert_allclose(found.arrays["u_A2"], np.array([0.4, 0.8]) / (8 * np.pi**2))
    text = (tmp_path / "one.pdb").read_text().replace("P 1", "P 21 21 21")
    (tmp_path / "one.pdb").write_text(text)
    read_structure(str(tmp_path / "one.pdb"))
    assert "without the symmetry of P 21 21 21" in caplog.text


def test_occupancies_that_make_no_sense(tmp_path):
    path = written(tmp_path / "mixed.cif", sites=MIXED.replace("0.4", "0.7"))
    with pytest.raises(ValueError, match="occupancies of what shares a site add up to 1"):
        prepare(make_plan({"kind": "simulate", "what": "hrtem", "structure": path}, "test"))
    path = written(tmp_path / "mixed.cif", sites=MIXED.replace("0.4", "-0.4"))
    with pytest.raises(ValueError, match="occupancy from -0.4"):
        read_structure(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.xyz", "9" * 200),
        ("POSCAR", "Si\n1\n5 0 0\n0 5 0\n0 0 5\nSi\n3000000000\nDirect\n0 0 0\n"),
    ],
)
def test_more_atoms_than_a_file_has_room_for(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="is no structure: .* atoms, and . lines follow"):
        read_structure(str(tmp_path / name))


@pytest.mark.parametrize("comment", ["90000000", "step 12", ""])
def test_a_number_in_a_comment_is_no_count(tmp_path, comment):
    frame = f"2\n{comment}\nSi 0 0 0\nSi 1 1 1\n"
    (tmp_path / "a.xyz").write_text(2 * frame)
    assert len(read_structure(str(tmp_path / "a.xyz"))) == 2


def test_atoms_beyond_the_faces_of_a_cell():
    """A crystal moves by whole cells; rounding does not; what is no crystal has to fit."""
    z = [-1e-15, 4.0 - 1e-13, 4.0, -2.0, 5.0]
    crystal = ase.Atoms("Si5", positions=[[0, 0, h] for h in z], cell=[4.0] * 3, pbc=True)
    found = np.asarray(atoms_of(crystal).position_A)[:, 2]
    np.testing.assert_allclose(found, [0.0, 0.0, 0.0, 2.0, 1.0], atol=1e-9)
    crystal.pbc = (True, True, False)
    with pytest.raises(ValueError, match="along the beam it does not repeat itself"):
        layers(atoms_of(crystal[[3, 4]]), np.full(2, 2.0))


def hexagonal():
    return ase.Atoms(
        "Mg2",
        scaled_positions=[[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]],
        cell=[3.21, 3.21, 5.21, 90, 90, 120],
        pbc=True,
    )


@pytest.mark.parametrize(
    ("crystal", "edges"),
    [
        (hexagonal(), (3.21, 3.21 * np.sqrt(3.0), 5.21)),
        (bulk("Si", "diamond", 5.43), (5.43 / np.sqrt(2.0), 5.43 / np.sqrt(2.0), 5.43)),
        (bulk("Fe", "bcc", 2.87), (2.87, 2.87, 2.87)),
        (mx2("MoS2", a=3.18, vacuum=5.0), (3.18, 3.18 * np.sqrt(3.0), 13.19)),
    ],
)
def test_cells_made_orthogonal_hold_the_same_crystal(crystal, edges):
    """Volume, density, composition, distances, and what a file says of each atom."""
    crystal.set_array("occupancy", np.linspace(0.5, 1.0, len(crystal)))
    found = orthogonal(crystal)
    np.testing.assert_allclose(found.cell.lengths(), edges, rtol=1e-6)
    np.testing.assert_allclose(found.cell.angles(), 90.0)
    times = len(found) / len(crystal)
    np.testing.assert_allclose(found.get_volume(), times * crystal.get_volume(), rtol=1e-6)
    many, few = (a.symbols.formula.count() for a in (found, crystal))
    assert many == {symbol: times * count for symbol, count in few.items()}
    for symbol in few:
        one, other = (
            np.sort(np.unique(a.arrays["occupancy"][a.symbols == symbol])) for a in (crystal, found)
        )
        np.testing.assert_allclose(other, one)
    nearest = []
    for atoms in (crystal, found):
        apart = atoms.repeat(3).get_all_distances(mic=True)
        nearest.append(np.sort(np.unique(np.round(apart[apart > 0.1], 4)))[:3])
    np.testing.assert_allclose(nearest[1], nearest[0], atol=2e-4)


def test_a_cell_is_made_orthogonal_when_the_user_agrees(tmp_path):
    ase.io.write(tmp_path / "mg.cif", hexagonal())
    plan = {
        "kind": "simulate",
        "what": "hrtem",
        "structure": str(tmp_path / "mg.cif"),
        "sampling_A": 0.4,
    }
    with pytest.raises(ValueError, match="orthogonal=true"):
        prepare(make_plan(plan, "test"))
    setup = prepare(make_plan(plan | {"orthogonal": True}, "test"))
    assert setup.atoms.numbers == (12,) * 4
    skewed = ase.Atoms("Si", cell=[3.0, 3.7, 4.1, 81, 77, 85], pbc=True)
    with pytest.raises(ValueError, match="no cell with right angles"):
        orthogonal(skewed)


def test_a_mixed_site_that_ase_has_converted(tmp_path):
    """ase keeps one element of a shared site as an atom, and the others in its notes."""
    converted = str(tmp_path / "mixed.extxyz")
    ase.io.write(converted, ase.io.read(written(tmp_path / "mixed.cif")))
    atoms = read_structure(converted)
    share = dict(zip(atoms.get_chemical_symbols()[:2], atoms.arrays["occupancy"], strict=False))
    assert share == {"Ba": 0.6, "Sr": 0.4}
    np.testing.assert_allclose(sorted(atoms.arrays["occupancy"]), [0.4, 0.6, 0.8, 1, 1, 1])
    np.testing.assert_allclose(atoms.positions, SITES, atol=1e-6)


def test_mixed_sites_that_are_nowhere_are_refused(tmp_path):
    atoms = ase.io.read(written(tmp_path / "mixed.cif"))
    ase.io.write(tmp_path / "mixed.traj", atoms)  # a format that keeps the notes alone
    with pytest.raises(ValueError, match="does not say of which atoms"):
        read_structure(str(tmp_path / "mixed.traj"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Ti1 Ti 0.5 0.5", "Ti1 Ti ? 1/2", r"site Ti1 lies at \?, 1/2, 0.5"),
        ("length_a 3.95", "length_a 1e300", r"no unit cell.*1e\+300"),
    ],
)
def test_places_and_cells_that_are_no_numbers(tmp_path, old, new, message):
    file = tmp_path / "odd.cif"
    written(file)
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_structure(str(file))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"tile": [1000, 1000, 1000]}, r"tile=\[1000, 1000, 1000\], 6000000000 atoms"),
        ({"tile": [100, 100, 1], "sampling_A": 0.001}, "sampling_A=0.001, .* pixels"),
    ],
)
def test_a_specimen_larger_than_memory_is_refused(tmp_path, setting, message):
    structure = written(tmp_path / "mixed.cif")
    plan = make_plan(
        {"kind": "simulate", "what": "cbed", "structure": structure, **setting}, "plan"
    )
    with pytest.raises(ValueError, match=message):
        prepare(plan)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("U_iso_or_equiv", "inf", "no displacement can be read from _atom_site_u_iso_or_equiv"),
        ("aniso_beta_11", "0.1", "no displacement can be read from _atom_site_aniso_beta_11"),
        ("U_iso_or_equiv", "1e400", "u_A2 from inf to inf"),
    ],
)
def test_displacements_that_cannot_be_read(tmp_path, caplog, column, value, told):
    lines = [f"_cell_length_{e} 4" for e in "abc"]
    lines += [f"_cell_angle_{a} 90" for a in ("alpha", "beta", "gamma")]
    lines += ["loop_", "_atom_site_label", *(f"_atom_site_fract_{x}" for x in "xyz")]
    lines += [f"_atom_site_{column}", f"Ti1 0 0 0 {value}"]
    (tmp_path / "a.cif").write_text("\n".join(["data_a", *lines, ""]))
    if "inf to inf" in told:
        with pytest.raises(ValueError, match=told):
            read_structure(str(tmp_path / "a.cif"))
    else:
        assert np.all(read_structure(str(tmp_path / "a.cif")).arrays["u_A2"] == 0.0)
        assert told in caplog.text
