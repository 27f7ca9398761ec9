"""`micjax train`: a folder with weights, a report, and a way on."""

import json

import numpy as np
import pytest

from micjax.__main__ import main
from micjax.nets.train import weights_of
from micjax.nets.weights import load_network
from micjax.run.folder import RunFolder

TINY = ["edge_px=16", "examples=2", "width=8", "depth=1", "schedule.steps=6", "schedule.chunk=2"]
TRAIN = [
    "train",
    "denoise",
    "--set",
    "tensorboard=true",
    *(word for text in TINY for word in ("--set", text)),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "whole"
    assert main([*TRAIN, "--out", str(folder)]) == 0
    return folder


def test_the_folder_of_a_training(whole):
    network = load_network(whole / "network.h5")
    assert network.options == {"width": 8, "depth": 1, "fold": 2}
    assert network.facts["steps"] == 6 and network.facts["problem"] == "denoise"
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert list((whole / "tensorboard").glob("events*"))
    report = (whole / "report.html").read_text()
    assert "All 6 steps were made." in report and "Examples" in report


@pytest.mark.slow
def test_it_goes_on_where_it_was_broken_off(whole, tmp_path, monkeypatch):
    add = RunFolder.add_metrics

    def interrupt(self, row):
        add(self, row)
        if row["step"] == 4:
            raise KeyboardInterrupt

    part = tmp_path / "part"
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "add_metrics", interrupt)
        assert main([*TRAIN, "--out", str(part)]) == 130
    assert main([*TRAIN, "--out", str(part), "--resume"]) == 0
    kept, again = (weights_of(load_network(f / "network.h5").network) for f in (whole, part))
    for name, array in kept.items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["edge"], "edge has no network to train"),
        (["denoise", "--set", "wide=8"], "no option of denoise 'wide' (nearest: width)"),
        (["denoise", "--set", "schedule.step=8"], "no setting of a schedule 'step'"),
        (["denoise", "--set", "schedule.steps=0"], "steps is 0"),
        (["denoise", "--set", "edge_px=20"], "edge_px = 20: a multiple of 16 is needed"),
        (["denoise", "--set", "width=12"], "12 channels: a multiple of 8 is needed"),
    ],
)
def test_what_cannot_be_trained(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2 and not list(tmp_path.iterdir())
    assert message in capsys.readouterr().err
