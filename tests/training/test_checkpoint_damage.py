"""Checkpoints: an interrupted save loses nothing, a bad file is explained."""

from __future__ import annotations

import os

import numpy as np
import pytest

from gpulayers.errors import CheckpointError
from gpulayers.models import Sequential
from gpulayers.training import (
    load,
    safetensors,
    save,
    write_safetensors,
)
from tests.support.checkpoints import rewrite
from tests.training.networks import dense
from tests.training.test_checkpoint import X, step, trained


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# ------------------------------------------------------------------------------- interrupted saves


@pytest.mark.parametrize("when", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_save_leaves_the_old_file_whole(path, monkeypatch, when, error):
    net = trained()
    save(path, net)
    old = path.read_bytes()
    step(net)

    def fail(*args, **kwargs):
        raise error

    if when == "write":

        def half(arrays, metadata):
            def blocks():
                yield b"half a file"
                raise error

            return b"", blocks()

        monkeypatch.setattr(safetensors, "encode", half)
    else:
        monkeypatch.setattr(os, when, fail)
    if isinstance(error, OSError):
        with pytest.raises(CheckpointError, match=r"cannot write .* No space left on device"):
            save(path, net)
    else:
        with pytest.raises(KeyboardInterrupt):
            save(path, net)
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == ["model.safetensors"], "nothing half-written is left behind"


def test_the_file_is_on_the_disk_before_it_gets_its_name(path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _n=name, _r=real: (events.append(_n), _r(*a))[1])
    save(path, dense())
    assert events[:2] == ["fsync", "replace"]


def test_permissions_follow_the_umask(path):
    former = os.umask(0o027)
    try:
        save(path, dense())
    finally:
        os.umask(former)
    assert path.stat().st_mode & 0o777 == 0o640


# -------------------------------------------------------------------------------------- bad files


def test_a_missing_file_names_its_neighbours(tmp_path):
    save(tmp_path / "best.safetensors", dense())
    with pytest.raises(CheckpointError, match=r"does not exist.*best\.safetensors"):
        load(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nowhere" / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a directory"):
        load(tmp_path)


def test_truncated_at_any_length(path):
    save(path, trained())
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError, match=r"truncated or corrupted.*older checkpoint"):
            load(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"\(0 bytes\)"):
        load(path)


def test_a_flipped_bit_anywhere_is_noticed(path):
    save(path, dense_with_parameters())
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    spots = [*range(12), *rng.integers(12, header, 60), *rng.integers(header, len(whole), 20)]
    for spot in [*spots, header - 1, len(whole) - 1]:
        broken = whole.copy()
        broken[spot] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(CheckpointError):
            load(path)


def test_what_may_not_be_read_is_named(unprivileged_folder):
    folder = unprivileged_folder / "run"
    folder.mkdir()
    path = folder / "model.safetensors"
    save(path, dense_with_parameters())
    for closed in (path, folder, unprivileged_folder):
        mode = closed.stat().st_mode
        closed.chmod(0)
        with pytest.raises(CheckpointError, match=r"cannot read .*: Permission denied"):
            load(path)
        closed.chmod(mode)
    load(path)


def dense_with_parameters() -> Sequential:
    net = dense()
    net.predict(X)
    return net


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda h: h.update(version=99), "format version 99"),
        (lambda h: h.update(format="pixels"), "its header says 'pixels'"),
        (lambda h: h.pop("format"), "header .* is corrupted"),
        (lambda h: h["network"].update({"class": "os.system"}), "'os.system' that gpulayers"),
        (lambda h: h["network"].pop("components"), "do not fit together"),
        (
            lambda h: h["network"]["components"]["1"]["hyperparameters"].update(n_out=7),
            "do not fit",
        ),
        (
            lambda h: h["network"]["components"]["1"]["parameters"].update(W={"$array": "gone"}),
            "do not",
        ),
        (lambda h: h["network"]["components"]["1"]["optimizer"].update(id="SGD"), "SGD"),
    ],
)
def test_an_edited_header_is_refused(path, change, words):
    net = dense()
    net.predict(X)
    save(path, net)
    load(path)
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=words):
        load(path)


def test_foreign_files(path, tmp_path):
    write_safetensors(path, {"weight": np.zeros(3)}, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"arrays alone \(weight\).*read_safetensors"):
        load(path)
    write_safetensors(path, {}, {"gpulayers": "[1"})
    with pytest.raises(CheckpointError, match=r"header .* is corrupted"):
        load(path)
    np.save(tmp_path / "bare.npy", np.zeros(3))
    with pytest.raises(CheckpointError, match="no gpulayers checkpoint"):
        load(tmp_path / "bare.npy")
    path.write_text("epoch,loss\n1,0.5\n")
    with pytest.raises(CheckpointError, match="no gpulayers checkpoint"):
        load(path)


def test_an_unwritable_place_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(tmp_path / "file" / "model.safetensors", dense())
