"""How many atoms: areal densities and compositions from edges and from X-ray lines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.inference.runner import solve
from micjax.io import Field, FieldAxis, write_nexus
from micjax.physics.spectra.atomic import atomic_mass_u
from micjax.physics.spectra.x_ray import cliff_lorimer
from micjax.problems import edx, eels
from micjax.problems.eels.data import exposure_ratio_of

ENERGY = jnp.linspace(450.0, 720.0, 136)
STEP_EV = 2.0
BARN_NM2 = 1e-10


def saved(path, data, axis, unit):
    axes = [FieldAxis(n, 1.0 * np.arange(k), "nm") for n, k in zip("yx", data.shape, strict=False)]
    field = Field(data, (*axes, FieldAxis("loss", axis, unit)), "", "signal")
    write_nexus(path, {"signal": field})
    return path


@pytest.fixture(scope="module")
def atoms(tmp_path_factory):
    """900 O and 300 Mn per nm^2 in a pixel of one mean free path, the edges exposed 5 times longer
    than the low loss."""
    loss = np.arange(-10.0, 100.0, STEP_EV)
    low = 3e9 * (
        np.exp(-0.5 * (loss / 1.0) ** 2) + 0.15 * np.exp(-0.5 * ((loss - 24.0) / 6.0) ** 2)
    )
    low = np.broadcast_to(np.round(low), (1, 2, len(loss)))
    file = saved(tmp_path_factory.mktemp("low") / "low.nxs", low, loss, "eV")
    options = {"channels": len(ENERGY), "low_loss": str(file), "exposure_ratio": 5.0}
    problem = eels.problem(1, 2, level=2e6, noise="scaled", gain=1.0, **options)
    incident = 5.0 * low.sum(axis=-1)
    true = {"O_K": 900.0, "Mn_L": 300.0}
    values = {
        f"forward.pixel.edges.{n}.amount": N * BARN_NM2 * incident * STEP_EV
        for n, N in true.items()
    }
    values["forward.pixel.edges.Mn_L.height"] = np.full((1, 2), 2e4)
    values["forward.pixel.background.level"] = np.full((1, 2), 1e5)
    truth = problem.at(values)
    y = np.random.default_rng(0).poisson(truth.forward(ENERGY)).astype(float)
    return truth, y, true


@pytest.fixture(scope="module")
def counted(atoms):
    truth, y, _ = atoms
    known = ["O_K.fine", "O_K.onset_eV"] + [
        f"Mn_L.{n}" for n in ("onset_eV", "splitting_eV", "branching_ratio", "fwhm_eV")
    ]
    known.append("Mn_L.fwhm_l2_eV")
    truth = truth.given({f"forward.pixel.edges.{n}": None for n in known})
    return solve(eels, truth, ENERGY, jnp.asarray(y), key=jax.random.key(0), neighbours=0)


def test_atoms_of_an_area_from_edges_and_low_loss(atoms, counted):
    _, _, true = atoms
    for name, N in true.items():
        density = counted.results[f"{name}.areal_density"]
        assert density.unit == "1/nm^2"
        off = (density.data - N) / density.metadata["errors"]
        assert np.abs(off).max() < 3.5 and (density.metadata["errors"] < 0.1 * N).all()
    percent, errors = (
        counted.results["O.atomic_percent"].data,
        counted.results["O.atomic_percent"].metadata["errors"],
    )
    assert (np.abs(percent - 75.0) < 3.5 * errors).all()
    other = counted.results["Mn.atomic_percent"]
    np.testing.assert_allclose(percent + other.data, 100.0, rtol=1e-5)
    np.testing.assert_allclose(other.metadata["errors"], errors, rtol=1e-3)
    (told,) = [s for s in counted.statements if "cross-sections" in s]
    assert "10 % for K edges and 15 % for L edges" in told and "O 7" in told


def test_how_long_edges_and_low_loss_were_exposed(tmp_path, caplog):
    def exposed(tem):
        axis = FieldAxis("loss", np.arange(5.0), "eV")
        return Field(np.ones(5), (axis,), "", "s", {"Acquisition_instrument": {"TEM": tem}})

    low = exposed({"dwell_time": 0.1})
    frames = exposed({"Detector": {"EELS": {"exposure": 0.5, "frame_number": 4}}})
    assert exposure_ratio_of(frames, low) == pytest.approx(20.0) and not caplog.text
    assert exposure_ratio_of(frames, exposed({})) == 1.0
    assert "do not say how long" in caplog.text
    y = np.random.default_rng(0).poisson(1e4, (1, 2, 60)).astype(float)
    file = saved(tmp_path / "a.nxs", y, np.arange(480.0, 540.0), "eV")
    with pytest.raises(ValueError, match="there is no low_loss"):
        eels.load(file, edges=["O_K"], exposure_ratio=3.0)


def test_compositions_by_cliff_and_lorimer():
    """As exspy 0.3.2 has them, quantification("CL", ...) of these intensities and factors."""
    counts = jnp.array([[300.0, 60.0], [900.0, 440.0]])
    weight = np.asarray(cliff_lorimer(counts, jnp.array([1.9, 1.2])))
    np.testing.assert_allclose(weight[0], [0.345455, 0.177570], rtol=1e-5)
    np.testing.assert_allclose(weight.sum(axis=0), 1.0, rtol=1e-6)
    assert atomic_mass_u("Fe") == pytest.approx(55.845, abs=1e-3)


def test_percent_of_a_map_with_their_errors():
    """Errors are those of counting: of two lines without overlap they are known."""
    truth, energy, _ = edx.example(jax.random.key(0), 2, 3)
    k = {"Ti_K": 1.2, "Sr_L": 2.0}
    families = ["O_K", "Ti_K", "Sr_L"]
    own = edx.problem(2, 3, families=families, k_factors=k).at(truth.values())
    y = own.noise(own.forward(energy)).sample(jax.random.key(1))
    solution = solve(edx, own, energy, jnp.asarray(y, float), key=jax.random.key(0))
    counts = {n: solution.results[f"{n}.counts"] for n in k}
    parts = {n: f * counts[n].data for n, f in k.items()}
    share = parts["Ti_K"] / (parts["Ti_K"] + parts["Sr_L"])
    np.testing.assert_allclose(solution.results["Ti.weight_percent"].data, 100.0 * share, rtol=1e-4)
    relative = [counts[n].metadata["errors"] / counts[n].data for n in k]
    expected = 100.0 * share * (1.0 - share) * np.hypot(*relative)
    errors = solution.results["Ti.weight_percent"].metadata["errors"]
    there = np.asarray(truth.values()["forward.pixel.Sr_L.counts"]) > 20.0
    np.testing.assert_allclose(errors[there], expected[there], rtol=0.02)
    moles = [share / atomic_mass_u("Ti"), (1.0 - share) / atomic_mass_u("Sr")]
    np.testing.assert_allclose(
        solution.results["Ti.atomic_percent"].data, 100.0 * moles[0] / sum(moles), rtol=1e-4
    )
    assert any("O, without a k-factor, do not count" in s for s in solution.statements)


def test_k_factors_of_alpha_lines_and_wrong_ones():
    alpha = edx.problem(1, 1, k_factors={"Ti_Ka": 1.0, "Sr_L": 2.0}).forward.pixel
    assert 0.8 < float(alpha.parts["Ti_K"].k_factor) < 0.95  # K beta is the rest
    for wrong, message in (
        ({"Fe_Ka": 1.0, "Ti_K": 1.0}, "Fe_Ka is of none of the families O_K, Ti_K, Sr_L"),
        ({"Ti_K": 1.0}, "Ti_K alone"),
        ({"Ti_K": 1.0, "Ti_Ka": 1.0}, "Ti_Ka and Ti_K: one for an element"),
        ({"Ti_K": -1.0, "Sr_L": 1.0}, "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            edx.problem(1, 1, k_factors=wrong)


def test_the_unit_of_an_axis_without_one(tmp_path):
    y = np.random.default_rng(0).poisson(50.0, (1, 2, 60)).astype(float)
    bare = saved(tmp_path / "bare.nxs", y, np.arange(480.0, 540.0), "")
    with pytest.raises(ValueError, match="one of eV, keV is needed; energy_unit says it"):
        eels.load(bare, edges=["O_K"])
    _, energy, _ = eels.load(bare, edges="O_K", energy_unit="eV")
    np.testing.assert_allclose(energy, np.arange(480.0, 540.0))
    _, energy, _ = edx.load(bare, elements="O", energy_unit="eV")
    np.testing.assert_allclose(energy, 1e-3 * np.arange(480.0, 540.0), rtol=1e-6)
    named = saved(tmp_path / "named.nxs", y, np.arange(480.0, 540.0), "eV")
    for file, unit in ((named, "keV"), (bare, "nm")):
        with pytest.raises(
            ValueError, match=f"energy_unit = {unit}: loss is in .*only for an axis"
        ):
            eels.load(file, edges=["O_K"], energy_unit=unit)


def test_a_peak_of_no_element_does_not_move_the_calibration(caplog):
    """Copper beside the L lines of hafnium, which would go there."""
    energy = np.linspace(0.3, 12.0, 586)
    own = {"offset_keV": 0.005, "gain_error": 1e-3, "noise_keV": 0.055}
    families = ["Si_K", "Fe_K", "Hf_L", "Cu_K"]
    axis = {"low_keV": 0.3, "high_keV": 12.0, "channels": len(energy)}
    truth = edx.problem(1, 1, families=families, counts_per_pixel=4e5, **axis, **own)
    total = np.random.default_rng(0).poisson(truth.forward(jnp.asarray(energy))[0, 0])
    with caplog.at_level("INFO", "micjax"):
        out = edx.calibration(energy, total.astype(float), families[:3], 200.0)
    assert caplog.text.count("do not explain") == 1 and "Cu_K" in caplog.text
    assert abs(out["gain_error"] - 1e-3) < 1e-4 and abs(out["offset_keV"] - 0.005) < 1e-3
    assert abs(out["noise_keV"] - 0.055) < 2e-3


def test_edges_on_wide_channels_stay_where_they_are():
    wide = eels.problem(1, 1, channels=50)
    assert not any("onset" in n for n in wide.priors)
    free = eels.problem(1, 1, channels=50, onset_sd_eV=2.0)
    assert "forward.pixel.edges.O_K.onset_eV" in free.priors
    plain = eels.problem(1, 1, channels=50, fine_structure=0)
    assert not any(n.endswith(".fine") for n in plain.priors)
    energy = jnp.linspace(450.0, 720.0, 50)
    assert np.isfinite(plain.forward(energy)).all()
    sharp = eels.problem(1, 1, channels=50, white_lines="lorentzian")
    assert np.abs(np.asarray(sharp.forward(energy) - wide.forward(energy))).max() > 1.0
