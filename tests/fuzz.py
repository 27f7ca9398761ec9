"""Damaged files of every format that micjax reads: whatever is in them, one clear line or data.

    python tests/fuzz.py [--mutants 10000] [--seed 0] [--workers 2] [--folder FOLDER]

Small valid files are made, mutated, and read by the route that users take, in processes with
limits. A mutant fails when it raises an exception that is not ours (see `fault`), when its reader
crashes, takes more than 10 s of a processor (a minute by the clock), or more than 1 GB. The last
line printed is a summary as JSON; mutants that failed are kept in the folder that it names.
"""

import argparse
import contextlib
import importlib
import json
import logging
import multiprocessing
import pathlib
import resource
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import h5py
import jax.numpy as jnp
import numpy as np

import micjax
import micjax.io as mio
from micjax.inference.checkpoint import Candidate, Snapshot, load_snapshot, save_snapshot
from micjax.inference.errors.nuts import Posterior
from micjax.inference.result import load_posterior, save
from micjax.inference.solvers.driver import Carry
from micjax.inference.stage import Stage
from micjax.io import Field, FieldAxis
from micjax.io.readers.structures import read_structure
from micjax.problems import edge
from micjax.run.plans.plan import make_plan, read_plan

HERE = pathlib.Path(micjax.__file__).parent
MOST_SECONDS, MOST_WAIT, MOST_BYTES = 10.0, 60.0, 1_000_000_000
THETA = {"forward.x": jnp.zeros(3)}
CARRY = Carry(THETA, (), THETA, jnp.asarray(1.0), jnp.asarray(0))
SNAPSHOT = Snapshot([Candidate(THETA)], carry=CARRY, losses=[np.zeros(4)])
HEIGHTS = np.add.outer(np.arange(6.0) ** 2, np.sin(np.arange(8.0)))

# --- valid files --------------------------------------------------------------------------------


def field(unit: str = "nm") -> Field:
    axes = FieldAxis("y", np.arange(6), "nm"), FieldAxis("x", np.arange(8), "nm")
    return Field(HEIGHTS, axes, unit, "height")


def write_nxs(path: pathlib.Path) -> None:
    results = {"height": field(), "phase": field("deg"), "mask": field("")}
    mio.write_nexus(path, results, errors={"height": 0.1 + 0.0 * HEIGHTS}, default="height")


def write_pynsid(path: pathlib.Path) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("Measurement_000/Channel_000")
        data = group.create_dataset("Height", data=HEIGHTS, chunks=(3, 4), compression="gzip")
        data.attrs.update(quantity="Height", units="m", data_type="IMAGE", modality="AFM")
        group.create_group("original_metadata").attrs["ScanRate"] = 1.0
        for i, name in enumerate("xy"):
            scale = group.create_dataset(name, data=1e-9 * np.arange(HEIGHTS.shape[i]))
            scale.attrs.update(name=name, units="m", dimension_type="SPATIAL")
            scale.make_scale(name)
            data.dims[i].attach_scale(scale)


def write_values(path: pathlib.Path) -> None:
    draws = {name: np.asarray(v)[None, None] for name, v in edge.problem().values().items()}
    save(path, edge.problem(), "micjax.problems.edge", {}, Posterior(draws, 0))


def write_gwy(path: pathlib.Path) -> None:
    import gwyfile

    metre = gwyfile.objects.GwySIUnit(unitstr="m")
    sizes = {"xreal": 8e-6, "yreal": 6e-6, "xoff": 1e-6, "yoff": 0.0}
    item = gwyfile.objects.GwyDataField(HEIGHTS, si_unit_xy=metre, si_unit_z=metre, **sizes)
    container = gwyfile.objects.GwyContainer()
    container["/0/data"], container["/0/data/title"] = item, "Height"
    container.tofile(str(path))


def write_tiff(path: pathlib.Path, **how) -> None:
    import tifffile

    tifffile.imwrite(path, HEIGHTS.astype("f4"), **how)


def write_imagej(path: pathlib.Path) -> None:
    notes = {"unit": "nm", "yunit": "um", "cf": 0, "c0": 1.0, "c1": 0.1, "vunit": "nm"}
    import tifffile

    raw = np.arange(144).reshape(3, 6, 8).astype("u2")
    tifffile.imwrite(path, raw, imagej=True, resolution=(4, 2), metadata=notes)


def write_jpk(path: pathlib.Path, channels: int = 2) -> None:
    """An image scan of JPK: a thumbnail with the settings of all, then a page a channel."""
    import tifffile

    settings = [
        (0x8003, "s", "2020-01-02 03:04:05 +0100"),
        (0x8042, "d", 1e-6),
        (0x8043, "d", 2e-6),
    ]
    settings += [(0x8044, "d", 0.0), (0x8045, "B", 0)]
    slot = [(0x8080, "H", 1), (0x8081, "s", "nominal"), (0x8090, "s", "nominal")]
    slot += [(0x80A2, "s", "m"), (0x80A3, "s", "LinearScaling"), (0x80A4, "d", 1e-10)]
    slot += [(0x80A5, "d", 3e-9)]

    def tags(pairs):
        return [(code, kind, 0 if kind == "s" else 1, value, True) for code, kind, value in pairs]

    with tifffile.TiffWriter(path) as file:
        small, raw = np.zeros((4, 4, 3), "u1"), np.arange(48).reshape(6, 8).astype("i4")
        file.write(small, photometric="rgb", extratags=tags(settings), metadata=None)
        for i in range(channels):
            name = [(0x8050, "s", f"Height {i}"), (0x8051, "H", 0), (0x8052, "s", f"Height {i}")]
            how = {"photometric": "minisblack", "metadata": None}
            file.write(raw, extratags=tags(name + slot), **how)


PLAN = """problem: tip
file: scan.ibw
options: {pixel_nm: 2.0, tip_size: 21}
engine:
  steps: 100
priors:
  forward.tip.shape.radius_nm: LogNormal(2, 0.5)
values: {noise.sigma: 0.1}
seed: 3
precision: float32
"""
CIF = """data_SrTiO3
_cell_length_a 3.905
_cell_length_b 3.905
_cell_length_c 3.905
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Sr1 Sr 0 0 0 0.9
Ti1 Ti 0.5 0.5 0.5 1
O1 O 0.5 0.5 0 1
O2 O 0.5 0 0.5 1
O3 O 0 0.5 0.5 1
"""
XYZ = """2
Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 pbc="T T T"
Si 0.0 0.0 0.0
Si 1.0 1.0 1.0
"""
POSCAR = "Si\n1.0\n4 0 0\n0 4 0\n0 0 4\nSi\n2\nDirect\n0 0 0\n0.25 0.25 0.25\n"

WRITERS: dict[str, Callable[[pathlib.Path], None]] = {
    "a.npy": lambda p: np.save(p, HEIGHTS),
    "a.npz": lambda p: np.savez(p, height=HEIGHTS, pixel_nm=2.0),
    "packed.npz": lambda p: np.savez_compressed(p, height=HEIGHTS, phase=-HEIGHTS, dx=2.0),
    "a.tif": write_tiff,
    "packed.tif": lambda p: write_tiff(p, compression="zlib"),
    "imagej.tif": write_imagej,
    "a.ome.tif": lambda p: write_tiff(p, metadata={"axes": "YX", "PhysicalSizeX": 2.0}),
    "a.jpk": write_jpk,
    "a.gwy": write_gwy,
    "a.nxs": write_nxs,
    "a.h5": write_pynsid,
    "values.h5": write_values,
    "checkpoint.h5": lambda p: save_snapshot(p, SNAPSHOT, Stage(), "data"),
    "plan.yaml": lambda p: p.write_text(PLAN),
    "a.cif": lambda p: p.write_text(CIF),
    "a.xyz": lambda p: p.write_text(XYZ),
    "POSCAR": lambda p: p.write_text(POSCAR),
}


def valid_files(folder: pathlib.Path) -> dict[str, bytes]:
    """The content of a small valid file of every format."""
    found = {}
    for name, write in WRITERS.items():
        with contextlib.suppress(ImportError):  # an optional package
            write(folder / name)
            found[name] = (folder / name).read_bytes()
    return found


# --- mutation -----------------------------------------------------------------------------------

EXTREME = (0, 1, -1, 127, 255, 32767, 65535, 2**31 - 1, -(2**31), 2**40, 2**62, -(2**63))
WORDS = ("nan", "-1", "1e999", "1e-320", "", "\x00", ".", "/", "é", "0", "{", "&a [*a]", "9" * 400)
VALUES = (".", "/", "..", "", "gone", np.nan, -1, 2**62, [], ["y", "y"], [1.0, 2.0], b"\xff\xfe")


def mutant(rng: np.random.Generator, name: str, files: dict[str, bytes]) -> bytes:
    """The file after one to four of the things that happen to files."""
    content = files[name]
    if content[:4] == b"\x89HDF" and rng.random() < 0.4:
        return with_other_contents(rng, content)
    ways = [flipped, cut, spliced, extreme_number, repeated, emptied]
    if content.isascii():
        ways += [with_other_word] * 4
    for _ in range(rng.integers(1, 5)):
        way = ways[rng.integers(len(ways))]
        content = way(rng, content, files) or b"\0"
    return content


def flipped(rng, content, _):
    changed = bytearray(content)
    for at in rng.integers(len(changed), size=rng.integers(1, 8)):
        changed[at] = rng.integers(256)
    return bytes(changed)


def cut(rng, content, _):
    return content[: rng.integers(len(content))]


def spliced(rng, content, files):
    other = list(files.values())[rng.integers(len(files))]
    a, b = rng.integers(len(content)), rng.integers(len(other))
    return content[:a] + other[b : b + rng.integers(1, 400)] + content[a:]


def extreme_number(rng, content, _):
    size, order = (1, 2, 4, 8)[rng.integers(4)], ("little", "big")[rng.integers(2)]
    number = EXTREME[rng.integers(len(EXTREME))] % 256**size
    at = rng.integers(len(content))
    return content[:at] + number.to_bytes(size, order) + content[at + size :]


def repeated(rng, content, _):
    a, b = sorted(rng.integers(len(content), size=2))
    return content[:b] + content[a:b] + content[b:]


def emptied(rng, content, _):
    at, length = rng.integers(len(content)), rng.integers(1, 64)
    return content[:at] + (b"\0", b"\xff")[rng.integers(2)] * length + content[at + length :]


def with_other_word(rng, content, _):
    words = content.decode(errors="replace").split(" ")
    words[rng.integers(len(words))] = WORDS[rng.integers(len(WORDS))]
    return " ".join(words).encode()


def with_other_contents(rng, content: bytes) -> bytes:
    """A sound HDF5 file that says other things."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "a.h5"
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            for _ in range(rng.integers(1, 4)):
                items = [file]
                file.visititems(lambda _, item, items=items: items.append(item))
                with contextlib.suppress(OSError, ValueError, TypeError, RuntimeError, KeyError):
                    _change(rng, file, items[rng.integers(len(items))])
        return path.read_bytes()


def _change(rng, file: h5py.File, item: h5py.HLObject) -> None:
    way, value = rng.integers(6), VALUES[rng.integers(len(VALUES))]
    known = list(item.attrs)
    if way < 2 and known:
        item.attrs[known[rng.integers(len(known))]] = value
    elif way == 2:
        name = ("_FillValue", "scale_factor", "default", "axes", "units", "signal")[rng.integers(6)]
        item.attrs[name] = value
    elif item.name != "/":
        name = item.name
        del file[name]
        if way == 3:
            file[name] = h5py.SoftLink(("/", name, ".", "/gone")[rng.integers(4)])
        elif way == 4:
            kind = ("f2", "i8", "c16", "S3", "O", "?")[rng.integers(6)]
            shape = ((0,), (), (6,), (8, 6), (2**20, 2**12))[rng.integers(5)]
            file.create_dataset(name, shape, h5py.string_dtype() if kind == "O" else kind)
        else:
            file[name] = h5py.ExternalLink("/etc/passwd", "/")


# --- reading ------------------------------------------------------------------------------------


def read(path: pathlib.Path) -> None:
    """As users do: the kind of a file is in its name."""
    if path.name.endswith("values.h5"):
        micjax.load(path)
        load_posterior(path)
    elif path.name.endswith("checkpoint.h5"):
        load_snapshot(path, SNAPSHOT, "data")
    elif path.suffix == ".yaml":
        make_plan(read_plan(path), str(path))
    elif path.suffix in (".cif", ".xyz") or path.name.endswith("POSCAR"):
        read_structure(str(path))
    else:
        for channel in mio.channels(path) if path.stat().st_size < 2_000 else (None,):
            mio.read(path, channel)


def fault(error: BaseException, path: pathlib.Path) -> str:
    """Why an exception is not ours; empty if it is.

    Ours is a ValueError or an OSError in one line of at most 1,000 characters that names the file,
    raised by a line of micjax.
    """
    raised = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error)
    if not isinstance(error, ValueError | OSError):
        return f"{type(error).__name__} at {raised.filename}:{raised.lineno}: {text[:200]}"
    if not pathlib.Path(raised.filename).is_relative_to(HERE):
        return f"raised at {raised.filename}:{raised.lineno}: {text[:200]}"
    if "\n" in text or len(text) > 1000:
        return f"not one line ({len(text)} characters): {text[:200]!r}"
    return "" if path.name in text else f"it does not name the file: {text[:200]}"


def outcome(path: pathlib.Path) -> tuple[str, str]:
    """`read`, `refused` or `exception`, and what was wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(path)
        except Exception as error:
            wrong = fault(error, path)
            return ("exception", wrong) if wrong else ("refused", str(error))
    return "read", ""


def most_bytes() -> int:
    """The most memory that this process or one that it started has had."""
    of = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in of)


def seconds() -> float:
    """Of a processor, of this process and those that it started."""
    of = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, of))


def serve(pipe) -> None:
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ImportError):
        importlib.import_module("SurfaceTopography.IO.JPK")  # takes seconds
    while (path := pipe.recv()) is not None:
        begun = seconds()
        pipe.send((*outcome(pathlib.Path(path)), seconds() - begun, most_bytes()))


class Reader:
    """A process that reads one file after the other, and is replaced when it hangs or crashes."""

    def __init__(self):
        self.context, self.process = multiprocessing.get_context("spawn"), None

    def start(self) -> None:
        self.pipe, there = self.context.Pipe()
        self.process = self.context.Process(target=serve, args=(there,), daemon=True)
        self.process.start()
        there.close()
        self.pipe.send(str(pathlib.Path(__file__).parent / "nothing.npy"))
        self.pipe.recv()  # it is there

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def outcome(self, path: pathlib.Path) -> tuple[str, str]:
        if self.process is None:
            self.start()
        self.pipe.send(str(path))
        if not self.pipe.poll(MOST_WAIT):
            self.end()
            return "hang", f"more than {MOST_WAIT:g} s by the clock"
        try:
            what, wrong, took, size = self.pipe.recv()
        except EOFError:
            self.end()
            return "exception", "the process crashed"
        if took > MOST_SECONDS:
            return "hang", f"{took:.3g} s"
        if size > MOST_BYTES:
            self.end()
            return "memory", f"{size / 1e9:.3g} GB"
        return what, wrong


def campaign(
    mutants: int, seed: int, files: dict[str, bytes], folder: pathlib.Path, outcome: Callable
) -> Iterator[tuple[str, str, str]]:
    """Name, outcome and what was wrong of each mutant; those which failed stay in the folder."""
    rng, names = np.random.default_rng(seed), list(files)
    for i in range(mutants):
        name = names[i % len(names)]
        path = folder / f"{seed}_{i}_{name}"
        path.write_bytes(mutant(rng, name, files))
        what, wrong = outcome(path)
        if what in ("read", "refused"):
            path.unlink()
        yield path.name, what, wrong


def run(arguments: tuple[int, int, dict, pathlib.Path]) -> list[tuple[str, str, str]]:
    reader, found = Reader(), []
    for name, what, wrong in campaign(*arguments, reader.outcome):
        found.append((name, what, wrong))
        if what not in ("read", "refused"):
            print(f"{what}: {name}: {wrong}", flush=True)
    reader.end()
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--mutants", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--folder", type=pathlib.Path, help="more valid files, of the microscopes")
    given = options.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz_"))
    files = valid_files(folder)
    known = mio.formats()
    for path in sorted(given.folder.rglob("*")) if given.folder else ():
        if path.suffix in known and path.stat().st_size < 3_000_000:
            files[path.name] = path.read_bytes()
    share = [given.mutants // given.workers] * given.workers
    share[0] += given.mutants - sum(share)
    jobs = [(n, given.seed + i, files, folder) for i, n in enumerate(share)]
    # a thread a reader: all work is in the processes
    from multiprocessing.pool import ThreadPool

    with ThreadPool(given.workers) as pool:
        found = [line for lines in pool.map(run, jobs) for line in lines]
    counts = Counter(what for _, what, _ in found)
    words = ("read", "refused", "exception", "hang", "memory")
    summary = {"name": "fuzz", "mutants": len(found), "formats": len(files)}
    print(json.dumps(summary | {w: counts[w] for w in words} | {"folder": str(folder)}))
    raise SystemExit(any(counts[w] for w in words[2:]))


if __name__ == "__main__":
    main()
