"""Bare arrays and TIFF: what they say is used, refused or told, and nothing is made up."""

import logging
import struct
import warnings

import numpy as np
import pytest

import micjax.io as mio


def ramp(ny=6, nx=8):
    return np.arange(ny * nx, dtype=float).reshape(ny, nx)


# --- NumPy ---


def test_npy(tmp_path):
    np.save(tmp_path / "a.npy", ramp().astype("i2"))
    image = mio.read(tmp_path / "a.npy")
    assert (image.unit, [a.unit for a in image.axes]) == ("", ["px", "px"])
    with pytest.raises(ValueError, match="a: no pixel size .* --set pixel_nm="):
        _ = image.pixel_nm
    with pytest.raises(ValueError, match="a: values in 'no unit' are not a length"):
        image.to_nm()
    image = mio.read(tmp_path / "a.npy", pixel_nm=(3, 2.0))
    assert image.pixel_nm == (3.0, 2.0)
    np.testing.assert_array_equal(image.data, ramp())
    assert mio.read(tmp_path / "a.npy", pixel_nm=2).pixel_nm == (2.0, 2.0)
    for wrong in (0.0, -1.0, float("nan"), (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match="pixel_nm is one positive number"):
            mio.read(tmp_path / "a.npy", pixel_nm=wrong)


@pytest.mark.parametrize("array", [np.array(3.0), np.array([["a", "b"]]), np.array([[None]])])
def test_npy_that_is_no_array_of_numbers(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy: not readable as NumPy array"):
        mio.read(tmp_path / "a.npy", pixel_nm=1.0)


def test_npy_of_a_curve(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3.0))
    curve = mio.read(tmp_path / "a.npy")
    assert [(a.name, a.unit) for a in curve.axes] == [("axis0", "")]
    with pytest.raises(ValueError, match="no axis y"):
        mio.read(tmp_path / "a.npy", pixel_nm=1.0)


def test_movie_of_bare_frames(tmp_path):
    np.save(tmp_path / "movie.npy", np.zeros((5, 6, 8)))
    movie = mio.read(tmp_path / "movie.npy", pixel_nm=2.0)
    assert [a.name for a in movie.axes] == ["axis0", "y", "x"]
    assert movie.pixel_nm == (2.0, 2.0)


@pytest.mark.parametrize("key, stated", [("pixel_nm", 2.0), ("dx", 2.0), ("pixel_nm", [3.0, 2.0])])
def test_npz_states_its_pixel(tmp_path, key, stated):
    path = tmp_path / "a.npz"
    np.savez(path, image=ramp(), rate=3.0, **{key: stated})
    image = mio.read(path)
    assert (image.name, image.pixel_nm) == ("image", (np.max(stated), 2.0))
    assert mio.read(path, pixel_nm=np.multiply(image.pixel_nm, 1.0005).tolist()).data.shape
    with pytest.raises(ValueError, match=r"states pixels of .* x 2 nm .* says 2\.1 x 2\.1 nm"):
        mio.read(path, pixel_nm=2.1)


def test_npz_of_several_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", phase=ramp(), height=-ramp(), pixel_nm=1.0)
    assert mio.read(tmp_path / "a.npz").name == "height"
    np.savez(tmp_path / "b.npz", first=ramp(), second=ramp(), pixel_nm=1.0)
    with pytest.raises(ValueError, match=r"which channel\? There are first, second"):
        mio.read(tmp_path / "b.npz")
    assert mio.read(tmp_path / "b.npz", channel="second").name == "second"
    np.savez(tmp_path / "c.npz", gain=1.0)
    with pytest.raises(ValueError, match="no array in it"):
        mio.read(tmp_path / "c.npz")


def test_what_is_not_used_of_an_npz_is_told(tmp_path, caplog):
    np.savez(tmp_path / "a.npz", height=ramp(), rate=3.0, bias=np.arange(3.0), pixel_nm=1.0)
    assert list(mio.channels(tmp_path / "a.npz")) == ["height"]
    assert "not used: rate, bias" in caplog.text
    np.savez(tmp_path / "b.npz", bias=np.arange(3.0))
    assert mio.read(tmp_path / "b.npz").data.shape == (3,)


# --- TIFF ---


@pytest.fixture
def tiff(tmp_path):
    """Writes a TIFF; gives its path."""
    tifffile = pytest.importorskip("tifffile")

    def write(data, **how):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it takes three images for colours
            tifffile.imwrite(tmp_path / "a.tif", data, **how)
        return tmp_path / "a.tif"

    return write


def imagej(tiff, data, resolution=(4, 2), **notes):
    return tiff(data, imagej=True, resolution=resolution, metadata=notes)


def test_plain_tiff(tiff, caplog):
    path = tiff(ramp().astype("f4"))
    with pytest.raises(ValueError, match="no pixel size"):
        _ = mio.read(path).pixel_nm
    image = mio.read(path, pixel_nm=1.5)
    np.testing.assert_array_equal(image.data, ramp())
    assert (image.pixel_nm, image.unit) == ((1.5, 1.5), "")
    path = tiff(ramp().astype("f4"), resolution=(72, 72), resolutionunit="INCH")
    with caplog.at_level(logging.INFO, logger="micjax.io"):
        assert mio.read(path).axes[0].unit == "px"
    assert "resolution is that of a printer" in caplog.text


@pytest.mark.parametrize("to, message", [(8, "go round in circles"), (10**9, "a page is missing")])
@pytest.mark.parametrize("silent", [False, True])
def test_pages_end_where_the_file_says(tiff, to, message, silent):
    """Whoever listens: tifffile logs what it finds, and a log can be turned off."""
    path = tiff(np.stack([ramp(), ramp()]).astype("f4"), metadata=None)
    raw = bytearray(path.read_bytes())
    at = 4
    for _ in range(3):  # from the header to the first page, to the second, behind it
        (page,) = struct.unpack_from("<I", raw, at)
        at, last = page and page + 2 + 12 * struct.unpack_from("<H", raw, page)[0], at
    raw[last : last + 4] = struct.pack("<I", to)
    path.write_bytes(raw)
    logging.disable(logging.CRITICAL if silent else logging.NOTSET)
    try:
        with pytest.raises(ValueError, match=f"a.tif.*{message}"):
            mio.read(path)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_stack_of_images_is_no_colour_picture(tiff, count, kind):
    stack = np.arange(count * 48).reshape(count, 6, 8).astype(kind)
    photometric = {"photometric": "minisblack"} if count == 2 else {}
    image = mio.read(tiff(stack, **photometric))
    np.testing.assert_array_equal(image.data, stack)
    assert [a.name for a in image.axes] == ["axis0", "y", "x"]


def test_curve_of_three_values_at_each_pixel_is_no_colour(tiff):
    cube = ramp(6, 24).reshape(6, 8, 3)
    image = mio.read(tiff(cube.astype("f4"), photometric="rgb"))
    np.testing.assert_array_equal(image.data, cube)
    assert [a.name for a in image.axes] == ["y", "x", "axis2"]


def test_pictures_are_refused(tiff):
    with pytest.raises(ValueError, match="a colour picture"):
        mio.read(tiff(np.zeros((6, 8, 3), "u1"), photometric="rgb"))
    colours = np.zeros((3, 256), "u2")
    with pytest.raises(ValueError, match="palette colours"):
        mio.read(tiff(np.zeros((6, 8), "u1"), photometric="palette", colormap=colours))


@pytest.mark.parametrize("unit, nm", [("nm", 1.0), ("um", 1e3), ("µm", 1e3), ("micron", 1e3)])
def test_pixel_of_imagej(tiff, unit, nm):
    # ImageJ escapes what is not ASCII
    path = imagej(tiff, ramp().astype("f4"), unit=unit.replace("µ", "\\u00B5"))
    assert mio.read(path).pixel_nm == pytest.approx((nm / 2, nm / 4))
    with pytest.raises(ValueError, match="states pixels"):
        mio.read(path, pixel_nm=nm)


def test_axes_of_imagej(tiff):
    notes = {"unit": "nm", "yunit": "um", "xorigin": 3, "yorigin": 1}
    notes |= {"axes": "ZYX", "spacing": 5.0, "zunit": "mm"}
    stack = imagej(tiff, np.zeros((2, 6, 8), "f4"), resolution=(0.5, 250.0), **notes)
    z, y, x = mio.read(stack).axes
    assert (z.name, z.unit, z.step) == ("z", "mm", 5.0)
    assert (y.unit, x.unit) == ("um", "nm")
    np.testing.assert_allclose(y.values, 0.004 * (np.arange(6) - 1), rtol=1e-6)
    np.testing.assert_allclose(x.values, 2.0 * (np.arange(8) - 3), rtol=1e-6)


@pytest.mark.parametrize("unit", [None, "pixel", "Nm", "inch"])
def test_no_pixel_of_imagej(tiff, unit):
    path = imagej(tiff, ramp().astype("f4"), **({"unit": unit} if unit else {}))
    assert [a.unit for a in mio.read(path).axes] == ["px", "px"]


def test_values_of_imagej(tiff):
    raw = ramp().astype("u2")
    line = {"unit": "nm", "cf": 0, "c0": -3.0, "c1": 0.05, "vunit": "nm"}
    image = mio.read(imagej(tiff, raw, **line))
    np.testing.assert_allclose(image.to_nm(), -3.0 + 0.05 * raw)
    assert mio.read(imagej(tiff, raw.astype("f4"), unit="nm", vunit="um")).unit == "um"
    assert mio.read(imagej(tiff, raw, unit="nm", vunit="Gray Value")).unit == ""
    with pytest.raises(ValueError, match="calibrated by function 4"):
        mio.read(imagej(tiff, raw, **line | {"cf": 4}))


def test_pixel_of_ome(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.ome.tif"
    notes = {"axes": "YX", "PhysicalSizeX": 2.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.004}
    tifffile.imwrite(path, ramp().astype("f4"), metadata=notes)
    assert mio.read(path).pixel_nm == pytest.approx((4.0, 2.0))


def test_second_series_is_told(tmp_path, caplog):
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(ramp(8, 8).astype("f4"))
        file.write(ramp(4, 4).astype("f4"))
    assert mio.read(tmp_path / "a.tif").data.shape == (8, 8)
    assert "the first of 2 series" in caplog.text
