"""Every format is read with its axes and units, and every bad file is refused in one clear line."""

import dataclasses
import importlib.metadata
import json
import logging
import os
import types

import h5py
import numpy as np
import pytest

import micjax.io as mio
from micjax.io import Field, FieldAxis, create_nexus
from micjax.io import registry as registry

# file: channel that is chosen, shape, (dy, dx) in nm, (lowest, highest) in nm
SAMPLES = {
    "afm/PMN28Pt0001.h5": ("HeightRetrace", (256, 256), 2000 / 255, 2000 / 255, -722, -115),
    "afm/PTO_Funakubo0001.h5": ("HeightRetrace", (256, 256), 1000 / 255, 1000 / 255, -609, -570),
    "afm/PTO_Funakubo0004.h5": ("HeightRetrace", (256, 256), 3000 / 255, 3000 / 255, -609, -569),
    "afm/PZT_thick0006.h5": ("HeightRetrace", (256, 256), 3000 / 255, 3000 / 255, -11.5, 16.2),
    "afm/PZT_thick0009.h5": ("HeightRetrace", (128, 256), 1000 / 127, 1000 / 255, -4.0, 3.2),
    "afm/scan_0001.ibw": ("HeightRetrace", (256, 256), 5000 / 255, 5000 / 255, -68, 37),
    "afm_formats/spot_1-1000nm.ibw": ("HeightRetrace", (256, 256), 78.43137, 78.43137, -688, -274),
    "afm_formats/di-1.di": ("Height (Main Trace)", (512, 512), 500 / 512, 500 / 512, -30, 29),
    "afm_formats/di-3.di": ("ZSensor", (256, 256), 1e4 / 256, 1e4 / 256, -646, 564),
    "afm_formats/example_ps.tiff": ("Z Height", (512, 512), 1000 / 512, 1000 / 512, -15, 21.7),
    "afm_formats/mi-1.mi": ("Topography", (256, 256), 20e3 / 256, 20e3 / 256, -630, -464),
    "afm_formats/nid-1.nid": ("Scan forward (Z-Axis)", (256, 256), 78.125, 78.125, -1983, -925),
    "afm_formats/top-1.top": ("Default", (256, 256), 600 / 256, 600 / 256, 115, 134),
}  # fmt: skip


@pytest.fixture
def sample(shared):
    def path_of(name):
        if not (shared / "data" / name).exists():
            pytest.skip(f"{name} is not among the reference data")
        return shared / "data" / name

    return path_of


def gwy_file(path, data, **channels):
    """A Gwyddion file of 500 nm pixels: a height and other channels."""
    gwyfile = pytest.importorskip("gwyfile")
    metre, volt = (gwyfile.objects.GwySIUnit(unitstr=u) for u in "mV")
    container = gwyfile.objects.GwyContainer()
    sizes = {"yreal": data.shape[0] * 500e-9, "xreal": data.shape[1] * 500e-9, "si_unit_xy": metre}
    for i, (title, values) in enumerate({**channels, "Height": data}.items()):
        unit = metre if title == "Height" else volt
        field = gwyfile.objects.GwyDataField(values, si_unit_z=unit, **sizes)
        container[f"/{i}/data"], container[f"/{i}/data/title"] = field, title
    container.tofile(str(path))
    return path


def ramp(ny=6, nx=8):
    return np.arange(ny * nx, dtype=float).reshape(ny, nx)


# --- real files ---


@pytest.mark.parametrize("name", SAMPLES)
def test_sample(sample, name):
    channel, shape, dy, dx, low, high = SAMPLES[name]
    path = sample(name)
    if not name.endswith(".h5"):
        pytest.importorskip("SurfaceTopography")
    image = mio.check_image(mio.read(path))
    assert (image.name, image.data.shape) == (channel, shape)
    assert [a.name for a in image.axes] == ["y", "x"]
    assert image.pixel_nm == pytest.approx((dy, dx), rel=1e-6)
    heights = image.to_nm()
    assert heights.dtype == np.float64
    assert heights.min() == pytest.approx(low, rel=0.03)
    assert heights.max() == pytest.approx(high, rel=0.03)
    channels = mio.formats()[path.suffix].read(path)
    np.testing.assert_array_equal(channels[channel].data, image.data)
    assert all(c.data.shape == shape and c.name == name for name, c in channels.items())


def test_pynsid_rows_are_y(sample):
    """256 points a line, 128 lines: stored [x, y], wanted [iy, ix]."""
    path = sample("afm/PZT_thick0009.h5")
    image = mio.read(path)
    with h5py.File(path) as file:
        stored = file["Measurement_000/Channel_0/Channel_0/Channel_0"][()]
    np.testing.assert_array_equal(image.data, stored.T)
    notes = image.metadata["original"]
    assert image.data.shape == (notes["ScanLines"], notes["ScanPoints"])
    # the fast axis is x: the slow one carries the jumps from line to line
    jumps_y, jumps_x = (
        np.abs(np.median(np.diff(image.data, n=2, axis=i), axis=1 - i)).mean() for i in (0, 1)
    )
    assert jumps_y > 5 * jumps_x


def test_pynsid_units_are_mended(sample):
    path = sample("afm/PZT_thick0009.h5")
    units = mio.channels(path)
    assert units["NapPhaseRetrace"] == units["PhaseRetrace"] == "deg"
    assert units["UserIn0Retrace"] == "V"
    assert units["AmplitudeRetrace"] == "m"
    phase = mio.read(path, channel="PhaseRetrace")  # its x and y are in "deg" in the file
    assert phase.pixel_nm == mio.read(path).pixel_nm
    with pytest.raises(ValueError, match="PhaseRetrace: values in 'deg' are not a length"):
        phase.to_nm()


def test_pynsid_spectra(sample):
    cube = mio.read(sample("afm/BEPS_PTO_50x50.h5"))
    assert [(a.name, a.unit) for a in cube.axes] == [("y", "m"), ("x", "m"), ("Voltage", "V")]
    assert cube.data.shape == (50, 50, 64)
    assert cube.pixel_nm == pytest.approx((2000 / 49, 2000 / 49))
    bias = cube.axes[2].values
    assert (bias.max(), bias.min()) == (8.5, -8.5)  # a loop, not a ramp
    with h5py.File(sample("afm/BEPS_PTO_50x50.h5")) as file:
        assert cube.data[3, 7, 5] == file["Channel_000/generic/generic"][7, 3, 5]


@pytest.mark.parametrize("name", ["afm/scan_0001.ibw", "afm_formats/spot_1-1000nm.ibw"])
def test_igor_rows_run_down(sample, name):
    """The wave is stored [x, y] with y up; igor2 reads it independently."""
    igor = pytest.importorskip("igor2.binarywave")
    pytest.importorskip("SurfaceTopography")
    path = sample(name)
    wave = igor.load(str(path))["wave"]["wData"]
    for k, channel in enumerate(mio.formats()[".ibw"].read(path).values()):
        np.testing.assert_array_equal(channel.data, wave[:, ::-1, k].T)


def test_igor_labels(sample):
    pytest.importorskip("SurfaceTopography")
    units = mio.channels(sample("afm/scan_0001.ibw"))
    # the file says Phase1Retracece and Phase2Retraceace
    assert units["Phase1Retrace"] == units["Phase2Retrace"] == "deg"
    assert units["FrequencyRetrace"] == "Hz"


def test_equal_names_are_told_apart(sample):
    pytest.importorskip("SurfaceTopography")
    nanoscope = mio.channels(sample("afm_formats/di-1.di"))
    assert list(nanoscope)[:2] == ["Height (Main Trace)", "Height (Interleave Retrace)"]
    assert nanoscope["Phase"] == "LSB"
    picoview = mio.channels(sample("afm_formats/mi-1.mi"))
    assert list(picoview)[2:] == ["Friction (Trace)", "Friction (Retrace)"]
    assert picoview["Friction (Trace)"] == "V"


@pytest.mark.parametrize("name", sorted(SAMPLES))
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5])
def test_truncated_sample(sample, tmp_path, name, kept):
    content = sample(name).read_bytes()
    short = tmp_path / name.rpartition("/")[2]
    short.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=short.name) as refused:
        mio.read(short)
    assert "\n" not in str(refused.value)
    # of some formats the list of channels is simply not reached
    reasons = ("not readable as", "no image in this") if kept else ("the file is empty",)
    assert any(reason in str(refused.value) for reason in reasons)


# --- files made here ---


def test_gwy_not_square(tmp_path):
    path = gwy_file(tmp_path / "scan.gwy", ramp() * 1e-9, Current=ramp(), Phase=ramp())
    image = mio.read(path)
    assert image.name == "Height"
    np.testing.assert_allclose(image.to_nm(), ramp(), rtol=1e-12)
    assert image.pixel_nm == pytest.approx((500, 500))
    assert mio.channels(path) == {"Current": "V", "Phase": "V", "Height": "m"}


def test_surfacetopography_agrees_on_a_gwy(tmp_path):
    """The convention on which every other format rests: its [ix, iy], transposed, is ours."""
    gwy = pytest.importorskip("SurfaceTopography.IO.GWY")
    path = gwy_file(tmp_path / "scan.gwy", ramp() * 1e-9)
    surface = gwy.GWYReader(str(path)).topography()
    np.testing.assert_allclose(surface.heights().T, mio.read(path).data)


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_truncated_own_files(tmp_path, kept):
    np.save(tmp_path / "a.npy", ramp())
    np.savez(tmp_path / "b.npz", height=ramp(), pixel_nm=2.0)
    mio.write_nexus(tmp_path / "c.nxs", {"height": simple_field()}, default="height", title="")
    pytest.importorskip("tifffile").imwrite(tmp_path / "d.tif", ramp(64, 64).astype("f4"))
    gwy_file(tmp_path / "e.gwy", ramp())
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(ValueError, match=f"{path.name}: not readable as"):
            mio.read(path, pixel_nm=1.0)


# --- what is refused ---


def test_bad_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.h5"):
        mio.read(tmp_path / "nothing.h5")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        mio.read(tmp_path)
    for name in ("scan.xyz", "scan"):
        (tmp_path / name).write_bytes(b"some bytes")
        with pytest.raises(ValueError, match=r"unknown format .* known are .*\.gwy .*\.ibw"):
            mio.read(tmp_path / name)


def test_hdf5_of_another_layout(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["numbers"] = ramp()
    with pytest.raises(ValueError, match=r"a\.h5: .*neither NeXus NXdata nor pyNSID"):
        mio.read(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_bytes(b"this is no HDF5 file")
    with pytest.raises(ValueError, match=r"b\.h5: not readable as HDF5"):
        mio.read(tmp_path / "b.h5")


def test_unknown_channel(tmp_path):
    np.savez(tmp_path / "a.npz", height=ramp(), phase=ramp(), pixel_nm=1.0)
    with pytest.raises(ValueError, match=r"'hieght' \(nearest: height\); there are height, phase"):
        mio.read(tmp_path / "a.npz", channel="hieght")


def test_names_that_cannot_be_seen_are_escaped(tmp_path):
    """A terminal takes `\\x1b` for a command, and a message is one line."""
    named = {"a\nb": ramp(), "Ziel\x1b[2J": ramp(), "µ": ramp()}
    np.savez(tmp_path / "a.npz", **named, pixel_nm=1.0)
    assert list(mio.channels(tmp_path / "a.npz")) == [r"a\nb", r"Ziel\x1b[2J", "µ"]
    assert mio.read(tmp_path / "a.npz", r"a\nb").name == r"a\nb"
    with pytest.raises(ValueError, match=r"which channel\? There are a\\nb, Ziel\\x1b\[2J, µ$"):
        mio.read(tmp_path / "a.npz")


def test_the_choice_is_logged(tmp_path, caplog):
    np.savez(tmp_path / "a.npz", height=ramp(), phase=ramp(), pixel_nm=1.0)
    with caplog.at_level(logging.INFO, logger="micjax.io"):
        mio.read(tmp_path / "a.npz")
    assert "channel height of height, phase" in caplog.text


@pytest.mark.parametrize("extension", [".ibw", ".007", ".tif"])
def test_missing_package(tmp_path, monkeypatch, extension):
    for name in ("SurfaceTopography.IO.IBW", "SurfaceTopography.IO.DI", "tifffile"):
        monkeypatch.setitem(__import__("sys").modules, name, None)  # as if not installed
    path = tmp_path / f"a{extension}"
    path.write_bytes(b"GWYP" + b"GwyContainer\0" + bytes(4))
    with pytest.raises(ImportError, match=r"pip install 'micjax\[spm\]'"):
        mio.read(path)


def test_check_image():
    def image(data):
        axes = (FieldAxis("y", np.arange(3), "nm"), FieldAxis("x", np.arange(4), "nm"))
        return Field(data, axes, "nm", "height")

    data = np.arange(12.0).reshape(3, 4)
    good = image(data)
    assert mio.check_image(good) is good
    broken = data.copy()
    broken[1, 2:], broken[2, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"height: 3 of 12 pixels .* \[iy, ix\] = \[1, 2\]"):
        mio.check_image(image(broken))
    with pytest.raises(ValueError, match="height: the image is constant, every pixel is 5"):
        mio.check_image(image(np.full((3, 4), 5.0)))
    with pytest.raises(ValueError, match=r"an image is wanted, this has shape \(3,\)"):
        mio.check_image(Field(np.arange(3), good.axes[:1], "nm", "line"))


def test_nan_is_read_but_not_accepted(tmp_path):
    data = ramp()
    data[2, 3] = np.nan
    np.save(tmp_path / "a.npy", data)
    with pytest.raises(ValueError, match=r"1 of 48 pixels are not finite .* \[2, 3\]"):
        mio.check_image(mio.read(tmp_path / "a.npy", pixel_nm=1.0))


# --- fields ---


def test_field_fits_its_axes():
    y, x = (
        FieldAxis("y", np.array([0.0, 1.0]), "nm"),
        FieldAxis("x", np.array([0.0, 2.0, 4.0]), "um"),
    )
    with pytest.raises(ValueError, match=r"h: data of shape \(3, 2\) but axes \(y: 2, x: 3\)"):
        Field(np.zeros((3, 2)), (y, x), "nm", "h")
    with pytest.raises(ValueError, match="two axes share a name"):
        Field(np.zeros((2, 2)), (y, y), "nm", "h")
    with pytest.raises(ValueError, match="axis x: values of shape"):
        FieldAxis("x", np.zeros((2, 2)), "nm")
    field = Field(np.zeros((2, 3), "i4"), (y, x), "nm", "h")
    assert field.data.dtype == np.float64
    assert field.pixel_nm == (1.0, 2000.0)
    assert x.step == 2.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        field.unit = "m"


@pytest.mark.parametrize(
    "unit, nm",
    [("m", 1e9), ("nm", 1.0), ("µm", 1e3), ("μm", 1e3), ("um", 1e3), ("Å", 0.1), ("pm", 1e-3)]
    + [("mm", 1e6), ("Nanometers", 1.0), ("micron", 1e3), ("Metre", 1e9), ("Angstroms", 0.1)],
)
def test_lengths(unit, nm):
    field = Field(np.ones((2, 2)), simple_axes(2, 2, unit), unit, "h")
    assert field.pixel_nm == pytest.approx((nm, nm))
    np.testing.assert_allclose(field.to_nm(), nm)


@pytest.mark.parametrize("unit", ["", "px", "V", "deg", "A", "1/nm", "Nm", "Mm", "PM", "M", "NM"])
def test_no_lengths(unit):
    field = Field(np.ones((2, 2)), simple_axes(2, 2, unit), unit, "h")
    with pytest.raises(ValueError, match="no pixel size"):
        _ = field.pixel_nm
    with pytest.raises(ValueError, match="not a length"):
        field.to_nm()


def test_no_pixel_size_on_uneven_or_missing_axes():
    y, x = simple_axes(3, 3)
    with pytest.raises(ValueError, match="axis x is not evenly spaced"):
        _ = Field(
            np.ones((3, 3)), (y, FieldAxis("x", np.array([0, 1, 3]), "nm")), "nm", "h"
        ).pixel_nm
    with pytest.raises(ValueError, match="no axis y"):
        _ = Field(np.ones(3), (x,), "nm", "h").pixel_nm
    down = Field(np.ones((3, 3)), (FieldAxis("y", np.array([4, 2, 0]), "nm"), x), "nm", "h")
    assert down.pixel_nm == (2.0, 1.0)


def test_formats_and_entry_points(tmp_path, monkeypatch):
    table = mio.formats()
    assert {".h5", ".nxs", ".ibw", ".gwy", ".npy", ".tiff", ".000"} <= set(table)
    assert table[".ibw"].family == "Asylum Igor wave"

    point = importlib.metadata.EntryPoint(".lab", f"{__name__}:lab_reader", "micjax.readers")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    (tmp_path / "a.lab").write_text("1 2\n3 5\n")
    assert mio.read(tmp_path / "a.lab").data[1, 1] == 5
    assert "lab_reader" in mio.formats()[".lab"].family


def lab_reader(path):
    data = np.loadtxt(path)
    return {"height": Field(data, simple_axes(*data.shape), "nm", "height")}


# --- adapters ---


def test_as_field_from_hyperspy():
    axes = [
        types.SimpleNamespace(name="y", axis=np.arange(6) * 0.5, units="nm"),
        types.SimpleNamespace(name=object(), axis=np.arange(8), units=object()),  # undefined
    ]
    notes = {"General": {"title": "film"}, "Signal": {"quantity": "Height (nm)"}}
    signal = types.SimpleNamespace(
        data=ramp(),
        axes_manager=types.SimpleNamespace(_axes=axes),
        metadata=types.SimpleNamespace(as_dictionary=lambda: notes),
    )
    field = mio.as_field(signal)
    assert [(a.name, a.unit) for a in field.axes] == [("y", "nm"), ("axis1", "")]
    assert (field.unit, field.name) == ("nm", "film")


class FakeSidpy:
    """An array [x, y], as sidpy keeps it."""

    units, quantity, original_metadata, ndim = "m", "Height", {"ScanRate": 1.0}, 2

    def __init__(self):
        self._axes = {
            i: types.SimpleNamespace(name=name, values=np.arange(n) * 1e-9, units="m")
            for i, (name, n) in enumerate({"x": 8, "y": 6}.items())
        }

    def __array__(self, dtype=None, copy=None):
        return ramp().T


def test_as_field_from_sidpy():
    field = mio.as_field(FakeSidpy())
    np.testing.assert_array_equal(field.data, ramp())
    assert field.pixel_nm == pytest.approx((1, 1))
    assert (field.unit, field.name, field.metadata["ScanRate"]) == ("m", "Height", 1.0)


class FakeXarray:
    dims, name, attrs = ("x", "y"), "topo", {"units": "nm"}

    def __init__(self):
        self.sizes = {"x": 8, "y": 6}
        self.coords = {"x": np.arange(8.0).view(Labelled)}

    def __array__(self, dtype=None, copy=None):
        return ramp().T


class Labelled(np.ndarray):
    attrs = {"units": "nm"}


def test_as_field_from_xarray():
    field = mio.as_field(FakeXarray())
    np.testing.assert_array_equal(field.data, ramp())
    assert [(a.name, a.unit) for a in field.axes] == [("y", "px"), ("x", "nm")]


def test_as_field_from_array_and_pixel():
    field = mio.as_field((ramp(), 2))
    assert field.pixel_nm == (2.0, 2.0)
    assert mio.as_field(field) is field
    with pytest.raises(TypeError, match="list is no Field"):
        mio.as_field([1, 2])


# --- results ---


def simple_axes(ny, nx, unit="nm"):
    return FieldAxis("y", np.arange(ny), unit), FieldAxis("x", np.arange(nx), unit)


def simple_field(name="height", data=None):
    data = ramp() if data is None else data
    return Field(data, simple_axes(*data.shape), "nm", name)


def result_fields():
    y, x = simple_axes(6, 8)
    steps = FieldAxis("step", np.arange(5), "")
    return {
        "loss": Field(np.exp(-np.arange(5.0)), (steps,), "", "loss"),
        "surface": simple_field("the surface"),
        "certain": Field(ramp() > 20, (y, x), "", "certain"),
        "spectra": Field(
            np.random.default_rng(0).normal(size=(6, 8, 100)),  # big enough to be compressed
            (y, x, FieldAxis("bias", np.sin(np.arange(100)), "V")),
            "pm",
            "spectra",
        ),
        "wave": Field(np.exp(1j * ramp()), (y, x), "rad", "wave"),
        "movie": Field(np.zeros((5, 6, 8)), (steps, y, x), "nm", "movie"),
        "evidence": Field(np.array(3.0), (), "nat", "evidence"),
    }


def check_nxdata(file):
    """The rules of NXdata by which viewers find what to draw; gives the default group."""
    assert file.attrs["NX_class"] == "NXroot"
    entry = file[file.attrs["default"]]
    assert entry.attrs["NX_class"] == "NXentry"
    groups = [g for g in entry.values() if g.attrs.get("NX_class") == "NXdata"]
    for group in groups:
        signal = group[group.attrs["signal"]]
        assert isinstance(signal, h5py.Dataset)
        assert signal.dtype.kind in "fiuc"
        axes = list(group.attrs["axes"])
        assert len(axes) == signal.ndim
        for i, name in enumerate(axes):
            axis = group[name]
            assert axis.shape == (signal.shape[i],)
            assert group.attrs[f"{name}_indices"] == i
            assert isinstance(axis.attrs["units"], str)
        assert isinstance(signal.attrs["units"], str)
        needed = {"scalar": 0, "spectrum": 1, "image": 2}
        assert group.attrs["interpretation"] == signal.attrs["interpretation"]
        assert needed[signal.attrs["interpretation"]] <= signal.ndim
        if "data_errors" in group:
            assert group["data_errors"].shape == signal.shape
    default = entry[entry.attrs["default"]]
    assert default in groups
    return default


@pytest.fixture
def result_file(tmp_path):
    path = tmp_path / "result.nxs"
    mio.write_nexus(
        path,
        result_fields(),
        errors={"surface": np.full((6, 8), 0.1)},
        default="surface",
        title="what the tip saw",
        process={"plan": {"steps": 5, "data": tmp_path / "a.h5"}, "seed": 3},
    )
    return path


def test_nexus_layout(result_file):
    with h5py.File(result_file) as file:
        assert check_nxdata(file).name == "/entry/surface"
        assert file["entry/title"].asstr()[()] == "what the tip saw"
        notes = file["entry/process/configuration"]
        assert json.loads(notes["plan"].asstr()[()])["data"].endswith("a.h5")
        kinds = {k: file[f"entry/{k}"].attrs["interpretation"] for k in result_fields()}
    assert kinds == {
        "loss": "spectrum",
        "surface": "image",
        "certain": "image",
        "spectra": "spectrum",
        "wave": "image",
        "movie": "image",
        "evidence": "scalar",
    }


def test_nexus_round_trip(result_file):
    back = mio.read_nexus(result_file)
    wanted = result_fields()
    assert set(back) == set(wanted)
    for name, field in wanted.items():
        assert back[name].unit == field.unit
        assert back[name].data.dtype == field.data.dtype
        np.testing.assert_array_equal(back[name].data, field.data)
        assert len(back[name].axes) == len(field.axes)
        for a, b in zip(back[name].axes, field.axes, strict=True):
            assert (a.name, a.unit) == (b.name, b.unit)
            np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(back["surface"].metadata["errors"], np.full((6, 8), 0.1))


def test_nexus_through_read(result_file):
    image = mio.read(result_file)
    assert (image.name, image.pixel_nm) == ("surface", (1.0, 1.0))
    assert mio.channels(result_file)["spectra"] == "pm"
    assert mio.read(result_file, channel="loss").data.shape == (5,)
    with pytest.raises(ValueError, match="states pixels of 1 x 1 nm"):
        mio.read(result_file, pixel_nm=1.01)


def test_nexus_is_written_whole_or_not_at_all(result_file, monkeypatch):
    before = result_file.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        mio.write_nexus(result_file, {"height": simple_field()}, default="height")
    assert result_file.read_bytes() == before
    assert list(result_file.parent.iterdir()) == [result_file]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"results": {}, "default": None}, "no results"),
        ({"default": "heigt"}, "no result 'heigt' .nearest: height"),
        ({"errors": {"phase": ramp()}}, "no result 'phase'"),
        ({"errors": {"height": np.zeros(3)}}, r"shape \(3,\), the result has \(6, 8\)"),
        ({"results": {"a/b": simple_field()}, "default": "a/b"}, "'a/b' cannot name"),
        ({"results": {"process": simple_field()}, "default": "process"}, "its own process"),
        (
            {
                "results": {
                    "height": Field(np.zeros(1), (FieldAxis("data", np.zeros(1), ""),), "", "h")
                }
            },
            "axis cannot be called 'data'",
        ),
    ],
)
def test_nexus_refuses(tmp_path, change, message):
    arguments = {"results": {"height": simple_field()}, "default": "height", **change}
    with pytest.raises(ValueError, match=message):
        mio.write_nexus(tmp_path / "a.nxs", arguments.pop("results"), **arguments)
    assert not list(tmp_path.iterdir())


def test_silx_finds_the_default(result_file):
    nxdata = pytest.importorskip("silx.io.nxdata")
    with h5py.File(result_file) as file:
        found = nxdata.get_default(file)
        assert found.group.name == "/entry/surface"
        assert found.interpretation == "image"
        assert list(found.axes_names) == ["y (nm)", "x (nm)"]
        assert found.errors.shape == (6, 8)


def test_hyperspy_opens_results(result_file):
    pytest.importorskip("hyperspy")
    from hyperspy.api import load

    signals = {s.metadata.General.title: s for s in load(str(result_file), nxdata_only=True)}
    assert signals["surface"].axes_manager.signal_dimension == 2
    assert signals["spectra"].axes_manager.signal_dimension == 1


def test_a_file_that_is_filled_part_by_part_takes_its_room_first(tmp_path):
    sizes = {"y": 8, "x": 9, "ky": 32, "kx": 31}
    axes = tuple(FieldAxis(name, np.arange(size), "nm") for name, size in sizes.items())
    with create_nexus(tmp_path / "large.nxs", "patterns", axes, "electrons") as data:
        assert (tmp_path / "large.nxs").stat().st_size > 4 * data.size
        assert data.dtype == np.float32
        data[3] += 2.0
    found = mio.read(tmp_path / "large.nxs")
    assert found.unit == "electrons" and [a.name for a in found.axes] == list(sizes)
    assert found.data.sum() == 2.0 * 9 * 32 * 31
    with pytest.raises(OSError, match="no_such"):
        with create_nexus(tmp_path / "no_such" / "large.nxs", "patterns", axes):
            pass
