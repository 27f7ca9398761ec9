"""Files of electron microscopes and pictures."""

import h5py
import numpy as np
import pytest
from PIL import Image

import micjax.io as mio


def write_hspy(path, data, axes, title="", quantity=""):
    """As hyperspy lays its files out (format 3.3)."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"file_format": "HyperSpy", "file_format_version": "3.3"})
        signal = file.create_group(f"Experiments/{title or '__unnamed__'}")
        signal.create_dataset("data", data=data)
        for i, axis in enumerate(axes):
            signal.create_group(f"axis-{i}").attrs.update(axis | {"size": data.shape[i]})
        signal.create_group("metadata/General").attrs["title"] = title
        signal.create_group("metadata/Signal").attrs["quantity"] = quantity
        signal.create_group("original_metadata")


def along(name, units, scale, offset=0.0, navigate=False):
    return {
        "_type": "UniformDataAxis",
        "name": name,
        "units": units,
        "scale": scale,
        "offset": offset,
        "navigate": navigate,
    }


def test_hspy(tmp_path):
    data = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    axes = [along("y", "nm", 0.5), along("x", "nm", 0.5), along("Energy loss", "eV", 2.0, 400.0)]
    write_hspy(tmp_path / "a.hspy", data, axes, "EELS", "Intensity (Counts)")
    cube = mio.read(tmp_path / "a.hspy")
    np.testing.assert_array_equal(cube.data, data)
    assert (cube.name, cube.unit, cube.pixel_nm) == ("EELS", "Counts", (0.5, 0.5))
    np.testing.assert_allclose(cube.axes[2].values, [400.0, 402.0, 404.0, 406.0])


def test_an_axis_without_a_unit_is_in_pixels(tmp_path):
    axes = [along("y", "", 1.0), along("x", "", 1.0)]
    write_hspy(tmp_path / "a.hspy", np.ones((2, 3)), axes)
    image = mio.read(tmp_path / "a.hspy", pixel_nm=0.02)
    assert (image.name, image.pixel_nm) == ("a", (0.02, 0.02))


def test_dm3_of_zeros_is_refused_in_one_line(tmp_path):
    (tmp_path / "a.dm3").write_bytes(b"\0" * 400)
    with pytest.raises(ValueError, match=r"a\.dm3: not readable as dm3 by rosettasciio"):
        mio.read(tmp_path / "a.dm3")


def test_other_files_are_not_opened(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["values"] = np.ones((2, 3))
    write_hspy(tmp_path / "a.hspy", np.ones((2, 3)), [along("y", "nm", 1), along("x", "nm", 1)])
    with h5py.File(tmp_path / "a.hspy", "a") as file:
        signal = file["Experiments/__unnamed__"]
        del signal["data"]
        signal["data"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "values")
    with pytest.raises(ValueError, match="a link out of the file, which is refused"):
        mio.read(tmp_path / "a.hspy")


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "RGBA", "LA"])
def test_png_of_grey_levels(tmp_path, mode):
    grey = np.arange(12, dtype=np.uint16 if mode == "I;16" else np.uint8).reshape(3, 4) * 20
    picture = Image.fromarray(grey)
    (picture if mode == "I;16" else picture.convert(mode)).save(tmp_path / "a.png")
    image = mio.read(tmp_path / "a.png", pixel_nm=0.1)
    np.testing.assert_array_equal(image.data, grey)
    assert image.pixel_nm == pytest.approx((0.1, 0.1)) and image.unit == ""


def test_png_in_colours_is_refused(tmp_path):
    colours = np.zeros((3, 4, 3), np.uint8)
    colours[1, 2, 0] = 9
    Image.fromarray(colours).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a picture in colours, no measured values"):
        mio.read(tmp_path / "a.png")
