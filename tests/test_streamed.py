"""Maps that are read row by row, and fitted by other processes: the same as all at once."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
from rsciio import hspy

from micjax.__main__ import main
from micjax.inference.maps.blocks import block
from micjax.inference.maps.blocks.fits import Fits
from micjax.inference.maps.status import STATUS
from micjax.io import Field, FieldAxis, channels, read, write_nexus
from micjax.io.rows import FileRows
from micjax.run.jobs.dealt import streamed
from micjax.run.jobs.dealt.elsewhere import workers_of

NY, NX, N = 6, 5, 24
ENERGY = np.linspace(1.0, 2.0, N)


def spectra(ny=NY, nx=NX, seed=0):
    y, x = np.indices((ny, nx))
    centre = 1.4 + 0.2 * x / nx + 0.01 * y
    mean = 80.0 * np.exp(-0.5 * ((ENERGY - centre[..., None]) / 0.1) ** 2) + 5.0
    return np.random.default_rng(seed).poisson(mean).astype(float)


def axes(ny=NY, nx=NX):
    return (
        FieldAxis("y", 3.0 * np.arange(ny), "nm"),
        FieldAxis("x", 2.0 * np.arange(nx), "nm"),
        FieldAxis("energy", ENERGY, "eV"),
    )


def nxs(path, ny=NY, nx=NX):
    write_nexus(path, {"counts": Field(spectra(ny, nx), axes(ny, nx), "", "counts")})
    return path


def x_first(path):
    """NeXus with x before y, as some scan."""
    y, x, energy = axes()
    data = spectra().transpose(1, 0, 2)
    write_nexus(path, {"counts": Field(data, (x, y, energy), "", "counts")})
    return path


def npy(path):
    np.save(path, spectra())
    return path


def nsid(path):
    """As sidpy writes it, x before y."""
    with h5py.File(path, "w") as file:
        group = file.create_group("Measurement_000/Channel_000/counts")
        data = group.create_dataset("counts", data=spectra().transpose(1, 0, 2))
        data.attrs.update(quantity="counts", units="", data_type="SPECTRAL_IMAGE")
        y, x, energy = axes()
        for i, axis in enumerate((x, y, energy)):
            scale = group.create_dataset(axis.name, data=axis.values)
            scale.attrs.update(name=axis.name, units=axis.unit, quantity=axis.name)
            scale.make_scale(axis.name)
            data.dims[i].label = axis.name
            data.dims[i].attach_scale(scale)
    return path


def by_rosettasciio(path):
    axes_ = [
        {
            "name": a.name,
            "size": len(a.values),
            "scale": float(a.step),
            "offset": float(a.values[0]),
            "units": a.unit,
            "navigate": a.name != "energy",
        }
        for a in axes()
    ]
    notes = {"General": {"title": "counts"}}
    signal = {"data": spectra(), "axes": axes_, "metadata": notes, "original_metadata": {}}
    signal |= {"attributes": {"_lazy": False}, "learning_results": {}, "models": {}}
    signal |= {"package_info": {"package": "", "package_version": ""}, "tmp_parameters": {}}
    hspy.file_writer(str(path), signal)
    return path


def zspy(path):
    """What hyperspy writes with zarr 2: the groups of an .hspy."""
    zarr = pytest.importorskip("zarr")
    with h5py.File(by_rosettasciio(path.with_suffix(".hspy"))) as file:
        root = zarr.open_group(str(path), mode="w", zarr_format=2)
        root.attrs.update({n: plain(v) for n, v in file.attrs.items()})

        def copied(name, item):
            if isinstance(item, h5py.Dataset):
                root.create_array(name, data=item[()])
            else:
                root.create_group(name).attrs.update({n: plain(v) for n, v in item.attrs.items()})

        file.visititems(copied)
    return path


def plain(value):
    return value.item() if isinstance(value, np.generic) else value


def zarr_by_xarray(path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(path), mode="w")
    data = group.create_array("counts", data=spectra(), dimension_names=("y", "x", "energy"))
    data.attrs["_FillValue"] = -1.0
    for axis in axes():
        group.create_array(axis.name, data=axis.values).attrs["units"] = axis.unit
    return path


@pytest.mark.parametrize(
    "name, make",
    [
        ("a.nxs", nxs),
        ("x.nxs", x_first),
        ("a.npy", npy),
        ("a.h5", nsid),
        ("a.hspy", by_rosettasciio),
        ("a.zspy", zspy),
        ("a.zarr", zarr_by_xarray),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_rows_of_a_file(tmp_path, name, make):
    whole = read(make(tmp_path / name))
    np.testing.assert_array_equal(whole.data, spectra())
    rows = FileRows.of(tmp_path / name)
    assert rows.count == NY and rows.bytes == whole.data.nbytes
    some = rows[2:5]
    np.testing.assert_array_equal(some.data, whole.data[2:5])
    np.testing.assert_allclose(some.axes[0].values, whole.axes[0].values[2:5])
    for a, b in zip(some.axes[1:], whole.axes[1:], strict=True):
        assert (a.name, a.unit) == (b.name, b.unit)
        np.testing.assert_array_equal(a.values, b.values)
    thin = rows.thinned(2 * NX * N)
    assert thin.data.shape == (2, NX, N)
    np.testing.assert_array_equal(thin.data, whole.data[[0, NY - 1]])
    np.testing.assert_allclose(thin.axes[0].values, whole.axes[0].values[:2])


def test_what_is_read_whole(tmp_path):
    np.savez(tmp_path / "a.npz", counts=spectra())
    assert FileRows.of(tmp_path / "a.npz") is None
    np.save(tmp_path / "image.npy", np.ones((3, 4)))
    assert FileRows.of(tmp_path / "image.npy") is None
    with pytest.raises(ValueError, match="no channel 'b'"):
        FileRows.of(nxs(tmp_path / "a.nxs"), "b")


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert main(["fit", "peaks", str(nxs(folder / "a.nxs")), "--out", str(folder / "run")]) == 0
    return folder


def same(folder, other, rtol=0.0):
    names = list(channels(folder / "result.nxs"))
    assert "peak_1.centre" in names and names == list(channels(other / "result.nxs"))
    for name in names:
        a, b = (read(f / "result.nxs", name) for f in (folder, other))
        np.testing.assert_allclose(b.data, a.data, rtol=rtol)
        if "errors" in a.metadata:
            np.testing.assert_allclose(b.metadata["errors"], a.metadata["errors"], rtol=rtol)
        for one, two in zip(a.axes, b.axes, strict=True):
            np.testing.assert_array_equal(one.values, two.values)


def test_row_by_row_is_the_same(whole, tmp_path, monkeypatch):
    """Read in blocks of a few pixels, and never together."""
    most = []
    at = streamed.LoadedRows.__getitem__
    monkeypatch.setattr(
        streamed.LoadedRows, "__getitem__", lambda self, rows: most.append(rows) or at(self, rows)
    )
    command = ["fit", "peaks", str(whole / "a.nxs"), "--set", "streamed=true"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    same(whole / "run", tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists() and most


def test_rows_without_data(tmp_path, monkeypatch):
    monkeypatch.setattr(block, "BLOCK", 128)
    data = spectra(12, 24)
    data[:7] = np.nan
    np.save(tmp_path / "a.npy", data)
    command = ["fit", "peaks", str(tmp_path / "a.npy"), "--set", "streamed=true"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    status = read(tmp_path / "run" / "result.nxs", "status").data
    assert (status[:7] == STATUS.index("no data")).all() and (status[7:] == 0).all()


def test_who_computes():
    assert workers_of(3, None).count == 3
    with workers_of(1, None).opened() as executor:
        assert executor.submit(abs, -2).result() == 2


def _sleep_after(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600.0)


@pytest.mark.slow
def test_processes_end_with_what_they_were_made_for(tmp_path):
    """In the middle of a task too: nobody waits for it."""
    path = tmp_path / "pid"
    with pytest.raises(KeyboardInterrupt), workers_of(1, None).opened() as executor:
        executor.submit(_sleep_after, str(path))
        while not path.exists() or not path.read_text():
            time.sleep(0.1)
        began = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - began < 10.0
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


def test_large_files_are_read_row_by_row(whole, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(streamed, "memory_bytes", lambda: 1000)
    monkeypatch.setattr(streamed, "SAMPLE", 2 * NX * N)
    assert main(["fit", "peaks", str(whole / "a.nxs"), "--out", str(tmp_path / "run")]) == 0
    assert "priors from 2 of 6 rows" in caplog.text
    assert read(tmp_path / "run" / "result.nxs", "peak_1.centre").data.shape == (NY, NX)


def test_broken_off_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(block, "BLOCK", 128)
    file = str(nxs(tmp_path / "a.nxs", 12, 24))
    command = ["fit", "peaks", file, "--set", "streamed=true", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    run = Fits.run

    def interrupted(self):
        yield next(run(self))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Fits, "run", interrupted)
        assert main([*command, str(tmp_path / "run")]) == 130
    status = read(tmp_path / "run" / "result.nxs", "status").data
    assert 0 < np.sum(status == 7) < status.size  # not fitted
    assert main([*command, str(tmp_path / "run"), "--resume"]) == 0
    same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["fit", "peaks", "a.npz", "--set", "streamed=true"], "read row by row"),
        (
            [
                "fit",
                "peaks",
                "a.nxs",
                "--set",
                "streamed=true",
                "--set",
                "engine.smooth=[peak_1.centre]",
            ],
            "need all data at once",
        ),
        (["fit", "peaks", "a.nxs", "--processes", "2", "--on", "dask://x:1"], "one of them"),
        (["fit", "peaks", "a.nxs", "--processes", "0"], "--processes 0"),
        (["demo", "edge", "--processes", "2"], "no map of fits"),
        (["fit", "peaks", "a.nxs", "--on", "nowhere"], "--on nowhere"),
        (["fit", "peaks", "a.nxs", "--on", "os:sep"], "no Executor"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    nxs(tmp_path / "a.nxs")
    np.savez(tmp_path / "a.npz", counts=spectra())
    assert main(arguments) in (1, 2)
    assert told in capsys.readouterr().err


# --- other processes ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    file = str(nxs(folder / "a.nxs", 40, 48))
    assert main(["fit", "peaks", file, "--out", str(folder / "run")]) == 0
    return folder


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path):
    """100,000 spectra, and no warning: the same as one that nobody has disturbed."""
    file = str(nxs(tmp_path / "a.nxs", 250, 400))
    command = ["fit", "peaks", file, "--set", "streamed=true", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "micjax", *command, str(run)])
    done = 0
    while not 10_000 < done < 150_000:
        assert process.poll() is None
        time.sleep(0.2)
        rows = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
        done = json.loads(rows.splitlines()[-1])["steps"] if rows else 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "result.nxs").exists()
    assert main([*command, str(run), "--resume"]) == 0
    same(tmp_path / "whole", run)


@pytest.mark.slow
def test_two_processes(large, tmp_path):
    """Of which one is killed when it has begun."""

    def kill():
        while not (children := multiprocessing.active_children()):
            time.sleep(0.05)
        time.sleep(1.0)
        os.kill(children[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    command = ["fit", "peaks", str(large / "a.nxs"), "--processes", "2"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    killer.join()
    same(large / "run", tmp_path / "run", 1e-6)
    assert "a worker died" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dask(large, tmp_path):
    """Two workers, of which one is killed when it has begun."""
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
    )
    with cluster, distributed.Client(cluster) as client:
        pids = list(client.run(os.getpid).values())

        def kill():
            time.sleep(6.0)
            os.kill(pids[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        on = f"dask:{cluster.scheduler_address.removeprefix('tcp:')}"
        command = ["fit", "peaks", str(large / "a.nxs"), "--on", on]
        assert main([*command, "--out", str(tmp_path / "run")]) == 0
        killer.join()
    same(large / "run", tmp_path / "run", 1e-6)
