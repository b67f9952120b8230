"""History, progress displays and the plot of the curves."""

from __future__ import annotations

import builtins
import io
import math
import re
import sys
import types
from xml.etree import ElementTree

import pytest

from gpulayers.training import EarlyStopping, Epoch, History, curve, plot_curves
from gpulayers.training.progress import BarProgress, LineProgress, make_progress
from tests.training.networks import dense, run


def record(epoch: int, accuracy: float) -> Epoch:
    return Epoch(epoch, 1.5, 0.5, 1.25, accuracy, 0.01, 12345.6, 2.5)


@pytest.fixture
def history() -> History:
    return History([record(1, 0.7), record(2, 0.9), record(3, 0.9)], [2.0, 1.5, 1.0, 0.9, 0.8, 0.7])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def hidden(monkeypatch):
    """Makes packages look as if they were not installed."""
    real = builtins.__import__

    def hide(*names: str) -> None:
        for module in list(sys.modules):
            if module.partition(".")[0] in names:
                monkeypatch.delitem(sys.modules, module)

        def fake(name, *args, **kwargs):
            if name.partition(".")[0] in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", fake)

    return hide


def test_history(history):
    assert len(history) == 3 and history[0].epoch == 1 and history.last.epoch == 3
    assert history.best.epoch == 2, "the first of equals"
    assert history.seconds == 7.5
    assert history.column("val_accuracy") == [0.7, 0.9, 0.9]
    assert History.from_dict(history.to_dict()) == history
    lines = history.to_csv().splitlines()
    assert lines[1] == "1,1.5,0.5,1.25,0.7,0.01,12345.6,2.5"


def test_without_a_terminal_there_is_one_line_an_epoch(digits):
    stream = io.StringIO()
    progress = make_progress(stream)
    assert isinstance(progress, LineProgress)
    run(dense(), digits, progress=progress)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    pattern = (
        r"epoch 1/2  loss \d\.\d{4}  acc [\d.]+%  test loss \d\.\d{4}  test acc [\d.]+%  "
        r"[\d,]+ ex/s  [\d.]+ s"
    )
    assert re.fullmatch(pattern, lines[0]), lines[0]
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_a_bar(digits, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    progress = make_progress(stream)
    assert isinstance(progress, BarProgress)
    progress.start(2, 10, 0)
    progress.step(1, 5, 1.2345, 0.5, 1000.0)
    progress.bar.rich.refresh()
    progress.validating(1)
    progress.epoch_done(record(1, 0.75))
    progress.message("[bold]as it is")
    progress.stop()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    for piece in ("epoch 1/2", "5/20", "loss 1.2345", "acc 50.00%", "1,000 ex/s", "ETA"):
        assert piece in text, piece
    assert "test acc 75.00%" in text and "[bold]as it is" in text


def test_a_bar_survives_a_whole_run(digits, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    run(dense(), digits, epochs=2, progress=make_progress(stream))
    assert stream.getvalue().count("test acc") == 2


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress(Terminal()), LineProgress)


def test_without_rich_a_terminal_gets_lines_and_one_hint(hidden):
    hidden("rich")
    stream = Terminal()
    assert isinstance(make_progress(stream), LineProgress)
    assert stream.getvalue().count("rich is not installed") == 1


def test_the_default_goes_to_standard_output(digits, capsys):
    run(dense(), digits, epochs=1, progress=True)
    assert "epoch 1/1" in capsys.readouterr().out


class Notebook:
    """Stands for IPython's display: remembers what is shown."""

    def __init__(self) -> None:
        self.pictures: list[str] = []

    def display(self, thing, display_id):
        assert display_id is True
        self.update(thing)
        return self

    def update(self, thing) -> None:
        self.pictures.append(thing._repr_html_())
        self.text = repr(thing)


@pytest.fixture
def notebook(monkeypatch):
    """A kernel's shell, and a place to show things."""
    found = Notebook()
    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = found.display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    return found


def test_a_notebook_gets_curves_that_grow(digits, notebook, capsys, monkeypatch):
    monkeypatch.setattr(curve, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr("gpulayers.training.trainer._LOOK_SECONDS", 0.0)
    stopping = EarlyStopping("val_loss", 1, min_delta=9.0)
    trainer = run(dense(), digits, epochs=3, progress="curve", callbacks=[stopping])
    assert capsys.readouterr().out == "", "no lines besides"
    roots = [ElementTree.fromstring(picture) for picture in notebook.pictures]
    assert len(roots) > 20, "drawn while it trains"
    circles = [len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) for root in roots]
    assert circles == sorted(circles) and circles[0] == 0
    assert circles[-1] == 4 * len(trainer.history) == 8, "loss, accuracy; training, test"
    text = " ".join(roots[-1].itertext())
    assert f"test accuracy {trainer.history.last.val_accuracy:.2%}" in text
    assert "stopped after epoch 2: val_loss" in text
    assert notebook.text.startswith("epoch 2/3: loss "), "where no pictures are shown"
    run(dense(), digits, epochs=1, progress=False)


def test_curves_of_anything(history):
    for epochs, notes in [(History(), []), (history, ["<script>", "a & b"])]:
        text = curve.curve_svg(epochs, 3, notes, [(0.1, 2.0, 0.3), (0.2, math.nan, 0.3)])
        root = ElementTree.fromstring(text)
        assert root.attrib["aria-label"] == f"loss and accuracy over {len(epochs)} epochs"
        assert "nan" not in text and "<script>" not in text
    history.epochs.append(record(4, math.inf))
    assert "inf" not in curve.curve_svg(history, 4, [])


def test_elsewhere_the_curve_is_what_true_is(digits, capsys):
    run(dense(), digits, epochs=1, progress="curve")
    assert "epoch 1/1" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_curves(history, tmp_path, ending):
    pytest.importorskip("matplotlib")
    path = plot_curves(history, tmp_path / "new" / f"curves.{ending}", "a title")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    assert len(content) > 5000


def test_curves_of_one_epoch_and_of_none(tmp_path):
    pytest.importorskip("matplotlib")
    plot_curves(History([record(1, 0.5)], [1.0]), tmp_path / "one.png")


def test_without_matplotlib_the_plot_says_what_is_missing(history, tmp_path, hidden):
    hidden("matplotlib")
    with pytest.raises(ImportError, match="matplotlib"):
        plot_curves(history, tmp_path / "curves.png")
