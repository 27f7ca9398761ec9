"""Damaged files give one clear line or data; `python tests/fuzz.py` makes ten thousand of them."""

import fuzz
import pytest


def test_damaged_files_give_one_clear_line(tmp_path):
    files = fuzz.valid_files(tmp_path)
    for name in files:
        assert fuzz.outcome(tmp_path / name) == ("read", ""), name
    before = fuzz.most_bytes()
    outcomes = list(fuzz.campaign(6 * len(files), 1, files, tmp_path, fuzz.outcome))
    assert [o for o in outcomes if o[1] == "exception"] == []
    assert {"read", "refused"} == {what for _, what, _ in outcomes}
    assert fuzz.most_bytes() - before < fuzz.MOST_BYTES


@pytest.mark.parametrize(
    "error, why",
    [
        (KeyError("a.npy"), "KeyError at"),
        (ValueError("a.npy: raised by this test"), "raised at"),
        (OSError("a.npy: raised by this test"), "raised at"),
    ],
)
def test_what_is_not_ours_is_a_fault(tmp_path, monkeypatch, error, why):
    def read(path):
        raise error

    monkeypatch.setattr(fuzz, "read", read)
    what, wrong = fuzz.outcome(tmp_path / "a.npy")
    assert what == "exception" and wrong.startswith(why)


def test_a_reader_that_hangs_or_takes_too_much_is_seen(tmp_path, monkeypatch):
    (tmp_path / "a.nxs").write_bytes(b"x")
    reader = fuzz.Reader()
    monkeypatch.setattr(fuzz, "MOST_BYTES", 1)
    assert reader.outcome(tmp_path / "a.nxs")[0] == "memory"
    monkeypatch.setattr(fuzz, "MOST_WAIT", 0.0)
    reader.start()
    assert reader.outcome(tmp_path / "a.nxs")[0] == "hang"
    assert reader.process is None
