"""What a file or another package says of its data is used, refused or told, never dropped."""

import types
import zlib

import fuzz
import numpy as np
import pytest

import micjax.io as mio
from micjax.io import Field, FieldAxis
from micjax.problems import cbed
from micjax.run.jobs.sources import open_file

IMAGE = np.arange(48.0).reshape(6, 8)
MASKED = np.ma.masked_less(IMAGE, 3)


def axes(unit="nm"):
    return FieldAxis("y", np.arange(6), unit), FieldAxis("x", np.arange(8), unit)


# --- fields ---


def test_masked_values_are_nan():
    wanted = MASKED.filled(np.nan)
    np.testing.assert_array_equal(Field(MASKED, axes(), "nm", "h").data, wanted)
    np.testing.assert_array_equal(Field(MASKED.astype(int), axes(), "nm", "h").data, wanted)
    np.testing.assert_array_equal(mio.as_field((MASKED, 2.0)).data, wanted)


@pytest.mark.parametrize("values", [np.array(["a"]), np.array([None]), np.array(["2020"], "M8[s]")])
def test_what_is_no_number_is_no_field(values):
    with pytest.raises(ValueError, match="no numbers"):
        Field(values, (FieldAxis("t", np.zeros(1), "s"),), "", "h")
    with pytest.raises(ValueError, match="axis t: values of kind"):
        FieldAxis("t", values, "s")
    with pytest.raises(ValueError, match="axis t: values of kind complex"):
        FieldAxis("t", np.array([1j]), "s")


def test_a_pixel_that_a_file_states_is_not_replaced(tmp_path):
    y, x = axes("px")[0], axes("nm")[1]
    mio.write_nexus(tmp_path / "a.nxs", {"h": Field(IMAGE, (y, x), "nm", "h")})
    assert mio.read(tmp_path / "a.nxs", pixel_nm=(3.0, 1.0)).pixel_nm == (3.0, 1.0)
    with pytest.raises(ValueError, match="states pixels of 3 x 1 nm"):
        mio.read(tmp_path / "a.nxs", pixel_nm=3.0)


# --- other packages ---


class Coordinate(np.ndarray):
    attrs = {"units": "nm"}


class Packed:
    """An xarray.DataArray which was opened without unpacking."""

    dims, name = ("y", "x"), "h"
    attrs = {"units": "nm", "scale_factor": 0.5, "add_offset": 1.0, "_FillValue": 0}
    sizes = {"y": 6, "x": 8}
    coords = {"y": np.arange(6.0).view(Coordinate), "time": 3.0}

    def __array__(self, dtype=None, copy=None):
        return IMAGE.astype("i2")


def test_packed_numbers_of_xarray(caplog):
    wanted = np.where(IMAGE == 0, np.nan, 0.5 * IMAGE + 1.0)
    np.testing.assert_array_equal(mio.as_field(Packed()).data, wanted)
    assert "coordinates that are no axes are not used: time" in caplog.text


def test_mixed_units_of_hyperspy_and_its_mask():
    named = [("y", "µm", 0.005), ("x", "nm", 5.0)]
    signal = types.SimpleNamespace(
        data=MASKED,
        axes_manager=types.SimpleNamespace(
            _axes=[
                types.SimpleNamespace(name=name, axis=step * np.arange(n), units=unit)
                for (name, unit, step), n in zip(named, IMAGE.shape, strict=True)
            ]
        ),
        metadata=types.SimpleNamespace(as_dictionary=lambda: {}),
    )
    field = mio.as_field(signal)
    assert field.pixel_nm == pytest.approx((5.0, 5.0))
    assert np.isnan(field.data).sum() == 3


# --- files ---


def test_offset_of_gwyddion_and_what_is_not_read(tmp_path, caplog):
    gwyfile = pytest.importorskip("gwyfile")
    metre = gwyfile.objects.GwySIUnit(unitstr="m")
    sizes = {"xreal": 8e-6, "yreal": 6e-6, "xoff": 2e-6, "yoff": -1e-6, "si_unit_xy": metre}
    box = gwyfile.objects.GwyContainer()
    box["/0/data"] = gwyfile.objects.GwyDataField(IMAGE, si_unit_z=metre, **sizes)
    box["/0/mask"] = gwyfile.objects.GwyDataField(1.0 * (IMAGE > 9), **sizes)
    box.tofile(str(tmp_path / "a.gwy"))
    y, x = mio.read(tmp_path / "a.gwy").axes
    np.testing.assert_allclose(y.values, 1e-6 * np.arange(6) - 1e-6, atol=1e-15)
    np.testing.assert_allclose(x.values, 1e-6 * np.arange(8) + 2e-6, atol=1e-15)
    assert "not read: /0/mask (GwyDataField)" in caplog.text


def test_half_a_jpk_is_refused_wherever_it_ends(tmp_path):
    pytest.importorskip("SurfaceTopography")
    fuzz.write_jpk(tmp_path / "a.jpk")
    whole = (tmp_path / "a.jpk").read_bytes()
    assert len(mio.channels(tmp_path / "a.jpk")) == 2
    for end in [*range(len(whole) // 3, len(whole), len(whole) // 9), len(whole) - 1]:
        (tmp_path / "a.jpk").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"a\.jpk: not readable as JPK"):
            mio.read(tmp_path / "a.jpk")


def test_an_array_after_the_array_is_refused(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.save(file, IMAGE)
        np.save(file, IMAGE)
    with pytest.raises(ValueError, match="bytes after the array"):
        mio.read(tmp_path / "a.npy")


def test_small_archives_and_pictures_do_not_take_all_memory(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    # the archive says 1.6 GB of a few kB, without the test having them
    np.savez_compressed(tmp_path / "a.npz", height=np.zeros((20, 20)))
    whole = (tmp_path / "a.npz").read_bytes()
    size = (128 + 8 * 400).to_bytes(4, "little")
    assert whole.count(size) >= 2
    (tmp_path / "a.npz").write_bytes(whole.replace(size, (1_600_000_000).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="12.8 GB of memory and 0.256 GB are allowed"):
        mio.read(tmp_path / "a.npz")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), "f4"), compression="zlib")
    whole = (tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        start, length = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    bomb = zlib.compress(bytes(20_000))
    changed = whole.replace(length.to_bytes(4, "little"), len(bomb).to_bytes(4, "little"))
    (tmp_path / "a.tif").write_bytes(changed[:start] + bomb + changed[start + len(bomb) :])
    with pytest.raises(ValueError, match="holds more than the 256 bytes of all"):
        mio.read(tmp_path / "a.tif")


# --- any problem ---


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif"])
def test_a_bare_pattern_is_a_pattern(tmp_path, suffix, caplog):
    tifffile = pytest.importorskip("tifffile")
    rows, columns = np.mgrid[-20:21, -20:21]
    pattern = 100.0 * (np.hypot(rows, columns) < 8) + 1.0
    path = tmp_path / f"pattern{suffix}"
    write = {".npy": np.save, ".npz": lambda p, a: np.savez(p, pattern=a), ".tif": tifffile.imwrite}
    write[suffix](path, pattern.astype("f4"))
    cell = {"numbers": [14], "fractions": [[0.0, 0.0, 0.0]], "cell_A": 4.0}
    _, camera, counts = cbed.load(path, mrad_per_px=2.0, semiangle_mrad=16.0, **cell)
    assert counts.sum() > 0 and float(camera.pixel_mrad) == 2.0
    assert "height" not in caplog.text and "nm" not in caplog.text


def test_a_bare_array_can_be_explored(tmp_path):
    np.save(tmp_path / "a.npy", IMAGE)
    source = open_file(str(tmp_path / "a.npy"), None, "max")
    assert [(a.name, a.unit) for a in source.space.axes] == [("y", "px"), ("x", "px")]
    np.testing.assert_array_equal(source.truth, IMAGE.ravel())
    np.save(tmp_path / "b.npy", 1j * IMAGE)
    with pytest.raises(ValueError, match="complex values"):
        open_file(str(tmp_path / "b.npy"), None, "max")
