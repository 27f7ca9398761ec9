"""Heights are nm only where that can be, and what is taken for granted is told."""

import numpy as np
import pytest

from micjax.io import Field, FieldAxis
from micjax.io.fields import as_pixel
from micjax.io.readers.arrays import bare
from micjax.problems import tip, tip_characteriser
from micjax.problems.shared.heights import heights_nm

SCAN = np.random.default_rng(0).normal(0.0, 5.0, (24, 30))
GREY = np.round(100 + 9 * SCAN).astype("u1")


def field(data, unit="", name="scan"):
    axes = (
        FieldAxis("y", np.arange(data.shape[0]), "nm"),
        FieldAxis("x", np.arange(data.shape[1]), "nm"),
    )
    return Field(data, axes, unit, name)


def test_a_bare_array_is_taken_as_nm_and_told(caplog):
    np.testing.assert_array_equal(heights_nm(field(SCAN)), SCAN)
    assert "scan: no unit in the file" in caplog.text and "are taken as nm" in caplog.text


@pytest.mark.parametrize(
    "image, message",
    [
        (bare(GREY, "scan"), r"scan: no unit .* \(uint8\) are grey levels or counts"),
        (field(1e-9 * SCAN), "less than 1 pm in nm: set height_unit=m"),
        (field(SCAN, "m", "AmplitudeRetrace"), "amplitude of an oscillation is no height"),
        (field(SCAN, "V"), "not a length"),
        (field(SCAN + 0j, "nm"), "complex128 values are not a length"),
        (field(SCAN > 0, "nm"), "bool values are not a length"),
        (field(SCAN > 0), "bool values are not a length"),
        (field(1e300 * SCAN), "heights in nm.* is .*e.301: numbers from"),  # infinite in float32
    ],
)
def test_what_is_no_height_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        heights_nm(image)


def test_an_image_without_rows_and_a_pixel_of_no_size_are_told():
    with pytest.raises(ValueError, match=r"axis y has 0 points of 2 at least; .* \(0, 30\)"):
        _ = field(SCAN[:0]).pixel_nm
    with pytest.raises(ValueError, match="pixel_nm.* is 1e-300: numbers from 1e-06"):
        as_pixel(1e-300)
    with pytest.raises(ValueError, match="height_unit = 'A' is not a length, as pm, Å, nm"):
        heights_nm(field(SCAN), "A")


def test_the_unit_can_be_given():
    np.testing.assert_allclose(heights_nm(field(1e-9 * SCAN), "m"), SCAN)
    np.testing.assert_array_equal(heights_nm(bare(GREY, "scan"), "nm"), GREY)
    with pytest.raises(ValueError, match="'V' is not a length"):
        heights_nm(field(SCAN), "V")
    with pytest.raises(ValueError, match="is in um, height_unit says nm"):
        heights_nm(field(SCAN, "um"), "nm")


def test_another_length_as_a_height_is_told(caplog):
    heights_nm(field(SCAN, "m", "HeightRetrace"))
    assert not caplog.records
    heights_nm(field(SCAN, "m", "DeflectionTrace"))
    assert "DeflectionTrace (m) is taken as a height" in caplog.text


@pytest.mark.parametrize("load", [tip.load, lambda f: tip_characteriser.load(f, str(f))])
def test_problems_of_heights_refuse_grey_levels(tmp_path, load):
    np.savez(tmp_path / "grey.npz", image=GREY, pixel_nm=2.0)
    with pytest.raises(ValueError, match="grey levels"):
        load(tmp_path / "grey.npz")


def test_tip_reads_metres_when_told(tmp_path):
    np.save(tmp_path / "scan.npy", 1e-9 * SCAN)
    with pytest.raises(ValueError, match="set height_unit=m"):
        tip.load(tmp_path / "scan.npy", pixel_nm=2.0)
    with pytest.raises(ValueError, match="no pixel size in the file"):
        tip.load(tmp_path / "scan.npy", height_unit="m")
    _, _, y = tip.load(tmp_path / "scan.npy", pixel_nm=2.0, height_unit="m")
    np.testing.assert_allclose(y[0], SCAN - SCAN.mean(), atol=1e-9)


def test_a_bare_tip_has_the_pixels_of_the_image(tmp_path):
    np.savez(tmp_path / "scan.npz", height=SCAN, pixel_nm=2.0)
    cone = -np.hypot(*np.mgrid[-2:3, -2:3]) * 0.7
    np.save(tmp_path / "tip.npy", cone)
    options, _, _ = tip.load(tmp_path / "scan.npz", known_tip=str(tmp_path / "tip.npy"))
    np.testing.assert_allclose(options["tip_heights_nm"], cone)
