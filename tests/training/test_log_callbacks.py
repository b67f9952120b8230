"""Callbacks that write logs: CSV, JSON lines, TensorBoard."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest

from gpulayers.training import (
    CSVLogger,
    JSONLogger,
    TensorBoardLogger,
    Trainer,
)
from tests.training.networks import dense, run
from tests.training.test_callbacks import record
from tests.training.test_showing import hidden  # noqa: F401 - a fixture


def test_csv_and_json_lines(digits, tmp_path):
    logs = [CSVLogger(tmp_path / "a" / "log.csv"), JSONLogger(tmp_path / "log.jsonl")]
    trainer = run(dense(), digits, epochs=3, callbacks=logs, out=tmp_path / "run")
    assert logs[0].path.read_text() == trainer.history.to_csv()
    lines = [json.loads(line) for line in logs[1].path.read_text().splitlines()]
    assert [line["val_loss"] for line in lines] == trainer.history.column("val_loss")
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    logs[1].path.write_text("half a li")
    logs[0].path.unlink()
    run(dense(), digits, epochs=4, callbacks=logs, resume=tmp_path / "run")
    assert len(logs[1].path.read_text().splitlines()) == 4
    assert len(logs[0].path.read_text().splitlines()) == 5


def test_what_is_not_finite_becomes_null(digits, tmp_path):
    log = JSONLogger(tmp_path / "log.jsonl")
    trainer = Trainer(dense(), digits)
    trainer.history.epochs.append(record(1, val_loss=math.nan, lr=math.inf))
    log.on_epoch_end(trainer, trainer.history.last)
    line = json.loads(log.path.read_text(), parse_constant=lambda text: pytest.fail(text))
    assert line["val_loss"] is None and line["lr"] is None and line["epoch"] == 1


def events_of(folder) -> dict[str, list[tuple[int, float]]]:
    """The scalars in TensorBoard's event files."""
    from tensorboardX.event_file_writer import EventsWriter  # noqa: F401 - the package is there
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.iterdir()):
        stream = io.BytesIO(path.read_bytes())
        while head := stream.read(12):
            size = int.from_bytes(head[:8], "little")
            content = stream.read(size)
            assert int.from_bytes(stream.read(4), "little") == masked_crc32c(content)
            event = Event.FromString(content)
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard(digits, tmp_path):
    pytest.importorskip("tensorboardX")
    options = {"epochs": 2, "callbacks": [TensorBoardLogger(tmp_path / "tb")]}
    trainer = run(dense(), digits, out=tmp_path / "run", **options)
    found = events_of(tmp_path / "tb")
    assert [step for step, _ in found["batch/loss"]] == list(range(1, 21))
    assert [v for _, v in found["batch/loss"]] == pytest.approx(trainer.history.step_losses)
    assert found["epoch/val_accuracy"] == [
        (10 * e.epoch, pytest.approx(e.val_accuracy)) for e in trainer.history.epochs
    ]
    options["epochs"] = 3
    run(dense(), digits, resume=tmp_path / "run", **options)
    assert [step for step, _ in events_of(tmp_path / "tb")["batch/loss"]] == list(range(1, 31))


def test_without_tensorboardx_it_says_what_is_missing(tmp_path, hidden):  # noqa: F811
    hidden("tensorboardX")
    with pytest.raises(ImportError, match="not installed: pip install tensorboardX"):
        TensorBoardLogger(tmp_path)
    assert "tensorboardX" not in sys.modules
