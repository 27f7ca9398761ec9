"""An HDF5 file cannot open another file, go on for ever, or take all memory."""

import time

import h5py
import jax.numpy as jnp
import numpy as np
import pytest

import micjax
import micjax.io as mio
from micjax.core.foreign import hdf5, limits
from micjax.inference.result import load_posterior, save
from micjax.io import Field, FieldAxis
from micjax.problems import edge

HEIGHTS = np.arange(48.0).reshape(6, 8)


@pytest.fixture
def scan(tmp_path):
    """A NeXus file of one image, and what changes it."""
    path = tmp_path / "scan.nxs"
    axes = FieldAxis("y", np.arange(6), "nm"), FieldAxis("x", np.arange(8), "nm")
    mio.write_nexus(path, {"height": Field(HEIGHTS, axes, "nm", "height")})

    def change(how):
        with h5py.File(path, "r+") as file:
            how(file["entry/height"])
        return path

    return change


@pytest.fixture
def secret(tmp_path):
    """A file that the HDF5 file has no right to open."""
    (tmp_path / "secret").write_bytes(HEIGHTS.tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = HEIGHTS
    return tmp_path / "secret"


def external_storage(group, secret):
    group.create_dataset("data", (6, 8), "f8", external=[(str(secret), 0, 8 * 48)])


def virtual_dataset(group, secret):
    layout = h5py.VirtualLayout((6, 8), "f8")
    layout[:] = h5py.VirtualSource(f"{secret}.h5", "data", (6, 8))
    group.create_virtual_dataset("data", layout)


def external_link(group, secret):
    group["data"] = h5py.ExternalLink(f"{secret}.h5", "/data")


OUTSIDE = [external_storage, virtual_dataset, external_link]


@pytest.mark.parametrize("outside", OUTSIDE)
def test_other_files_are_not_opened(scan, secret, outside):
    def change(group):
        del group["data"]
        outside(group, secret)

    with pytest.raises(ValueError, match=r"scan\.nxs: .*(other files|out of the file)"):
        mio.read(scan(change))


@pytest.mark.parametrize("outside", OUTSIDE)
def test_pynsid_opens_no_other_files(tmp_path, secret, outside):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        outside(file, secret)
        if outside is not external_link:
            file["data"].attrs["quantity"] = "Height"
    with pytest.raises(ValueError, match=r"a\.h5: "):
        mio.read(tmp_path / "a.h5")


@pytest.mark.parametrize("outside", OUTSIDE)
def test_results_open_no_other_files(tmp_path, secret, outside):
    save(tmp_path / "values.h5", edge.problem(), "micjax.problems.edge")
    with h5py.File(tmp_path / "values.h5", "r+") as file:
        outside(file["values"], secret)
    with pytest.raises(ValueError, match=r"values\.h5 is not a micjax result: .*(other|out of)"):
        micjax.load(tmp_path / "values.h5")


@pytest.mark.parametrize("link", [h5py.ExternalLink("b.h5", "/"), h5py.SoftLink("/posterior")])
def test_links_of_results_are_refused_with_the_name_of_the_file(tmp_path, link):
    save(tmp_path / "values.h5", edge.problem(), "micjax.problems.edge")
    with h5py.File(tmp_path / "values.h5", "r+") as file:
        file["posterior"] = link
    with pytest.raises(ValueError, match=r"values\.h5 is not a micjax result: .*(out of|circles)"):
        load_posterior(tmp_path / "values.h5")


def test_counts_of_a_checkpoint_are_numbers(tmp_path):
    path, problem = tmp_path / "fit.h5", edge.problem()
    x = jnp.linspace(-3.0, 3.0, 8)
    micjax.fit(problem, x, problem.forward(x), steps=2, checkpoint=path)
    with h5py.File(path, "r+") as file:
        file.attrs["stage"] = "."
    with pytest.raises(ValueError, match=r"fit\.h5 is not a micjax checkpoint"):
        micjax.fit(problem, x, problem.forward(x), steps=2, checkpoint=path, resume=True)


def test_what_lies_beside_in_other_files_does_no_harm(scan, secret):
    path = scan(lambda group: external_link(group.parent.create_group("raw"), secret))
    np.testing.assert_array_equal(mio.read(path).data, HEIGHTS)


def test_defaults_that_go_round_end(scan):
    def change(group):
        group.file.attrs["default"] = "."
        group.parent["again"] = h5py.SoftLink("/entry")
        group.parent.attrs["default"] = "again/again"

    with pytest.raises(ValueError, match="round in circles"):
        mio.read(scan(lambda g: g.file.attrs.update(default="entry") or change_to_loop(g)))
    assert mio.channels(scan(change)) == {"height": "nm"}


def change_to_loop(group):
    entry = group.parent
    entry.attrs["default"] = "/other"
    other = group.file.create_group("other")
    other.attrs["default"] = "/entry"


def test_links_that_go_round_end(scan):
    def change(group):
        group["turn"] = h5py.SoftLink("turn")
        group.attrs["signal"] = "turn"

    with pytest.raises(ValueError, match="round in circles"):
        mio.read(scan(change))


@pytest.mark.parametrize("packed", [{"compression": "gzip"}, {"fillvalue": 1.0, "chunks": True}])
def test_a_small_file_does_not_take_all_memory(scan, packed, monkeypatch):
    def change(group):
        del group["data"]
        group.create_dataset("data", (30_000, 30_000), "u1", **packed)

    path = scan(change)
    assert path.stat().st_size < 1e6
    started = time.process_time()
    with pytest.raises(ValueError, match=r"7\.2 GB of memory and 0\.256 GB .* MICJAX_FILE_GB"):
        mio.read(path)
    assert time.process_time() - started < 2.0
    monkeypatch.setenv("MICJAX_FILE_GB", "much")
    with pytest.raises(ValueError, match="a positive number of gigabytes"):
        mio.read(path)


def test_a_limit_can_be_raised_and_lowered(scan, monkeypatch):
    path = scan(lambda group: None)
    monkeypatch.setenv("MICJAX_FILE_GB", "1e-7")
    with pytest.raises(ValueError, match="MICJAX_FILE_GB to allow more"):
        mio.read(path)
    monkeypatch.setenv("MICJAX_FILE_GB", "1e-3")
    assert mio.read(path).data.shape == (6, 8)


SCRIPTS = {
    "while True: pass": "took more than 1 s",
    "import os; os.kill(os.getpid(), 11)": r"the HDF5 library crashed on it \(code 11\)",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_library_that_hangs_or_crashes_is_ended(scan, monkeypatch, tmp_path, script):
    whole = hdf5.SCRIPT.read_text()
    (tmp_path / "process.py").write_text(
        whole.replace("def serve(", f"def serve(*_):\n    {script}\n\ndef served(")
    )
    monkeypatch.setattr(hdf5, "SCRIPT", tmp_path / "process.py")
    monkeypatch.setattr(hdf5, "allowed_seconds", lambda path: 1)
    with pytest.raises(ValueError, match=SCRIPTS[script]):
        mio.read(scan(lambda group: None))


def test_the_time_allowed_grows_with_the_file(tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(bytes(1000))
    assert limits.allowed_seconds(path) == 4
    with open(path, "wb") as file:
        file.truncate(10**9)  # a hole, nothing on the disk
    assert limits.allowed_seconds(path) == 102


# --- what a file says of its numbers ---


def test_scales_offsets_and_gaps_are_used(scan):
    def change(group):
        group["scaling_factor"], group["offset"] = 0.5, 3.0

    np.testing.assert_array_equal(mio.read(scan(change)).data, 0.5 * HEIGHTS + 3.0)

    def packed(group):
        del group["scaling_factor"], group["offset"]
        group["data"].attrs.update(scale_factor=2.0, add_offset=1.0, _FillValue=7.0)

    wanted = np.where(HEIGHTS == 7.0, np.nan, 2.0 * HEIGHTS + 1.0)
    np.testing.assert_array_equal(mio.read(scan(packed)).data, wanted)


def test_axes_are_used_or_told(scan, caplog):
    def borders(group):
        group["edge"] = np.arange(9.0)
        group.attrs["axes"] = "y:edge"

    field = mio.read(scan(borders))
    np.testing.assert_array_equal(field.axes[1].values, np.arange(8) + 0.5)

    def missing(group):
        group.attrs["axes"] = ["y", "nothing"]

    assert mio.read(scan(missing)).axes[1].unit == "px"
    assert "the axis nothing does not fit the data" in caplog.text

    def swapped(group):
        group.attrs.update(axes=["y", "x"], y_indices=1, x_indices=0)

    with pytest.raises(ValueError, match="y_indices are in another order"):
        mio.read(scan(swapped))


def test_other_signals_are_read_or_told(scan, caplog):
    def change(group):
        group["phase"] = -HEIGHTS
        group.attrs["auxiliary_signals"] = ["phase", "gone"]

    path = scan(change)
    assert list(mio.channels(path)) == ["height", "height phase"]
    assert "its signal 'gone' is not there" in caplog.text
    assert mio.read(path).name == "height"
