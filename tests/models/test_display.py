"""What `fit` shows: a bar on a terminal and in a notebook, lines elsewhere, nothing if silent."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpulayers import _progress, random
from gpulayers.errors import DivergedError
from gpulayers.models import WGAN_GP, BernoulliVAE, Word2Vec
from gpulayers.training.progress import BarProgress, LineProgress, make_progress

IMAGES = np.random.default_rng(0).uniform(size=(7, 6, 6, 1)).astype(np.float32)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _vae(bad: bool, **options: Any) -> Any:
    vae = BernoulliVAE(
        enc_conv1_kernel_shape=(2, 2),
        enc_conv2_kernel_shape=(2, 2),
        enc_pool1_stride=1,
        latent_dim=4,
        optimizer="SGD(lr=1e30)" if bad else "Adam",
    )
    return vae.fit(IMAGES, n_epochs=2, batchsize=3, **options)


def _wgan(bad: bool, **options: Any) -> Any:
    gan = WGAN_GP(g_hidden=3, optimizer="SGD(lr=1e30)" if bad else "Adam")
    return gan.fit(IMAGES[:, :3, 0, 0], n_steps=20, batchsize=4, **options)


def _word2vec(bad: bool, **options: Any) -> Any:
    model = Word2Vec(context_len=1, embedding_dim=3, num_negative_samples=2,
                     optimizer="SGD(lr=1e30)" if bad else "Adam")  # fmt: skip
    path = Path("text.txt")
    path.write_text("one two three four five one three two five four " * 3)
    return model.fit(path, n_epochs=2, batchsize=8, **options)


FITS = {
    "vae": (_vae, 2, r"epoch 1/2  loss \d+\.\d{4}", r"epoch 2/2 .* [456]/6 .*loss \d+\.\d{4}"),
    "wgan": (
        _wgan,
        10,
        r"step 2/20  critic -?\d+\.\d{4}  generator -?\d+\.\d{4}",
        r"step .* \d+/20 .*critic -?\d+\.\d{4}  generator",
    ),
    "w2v": (_word2vec, 2, r"epoch 1/2  loss \d+\.\d{4}", r"epoch 2/2 .* [5678]/8 .*loss \d+"),
}
Fit = tuple[Callable[..., Any], int, str, str]


@pytest.fixture(params=FITS)
def fit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch, numpy_backend) -> Fit:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_progress, "_LOOK_SECONDS", -1.0)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    random.seed(0)
    return FITS[request.param]


def on_terminal(run: Callable[..., Any], bad: bool = False, **options: Any) -> str:
    """What `run` writes to a terminal."""
    stream = Terminal()
    with redirect_stdout(stream), np.errstate(all="ignore"):
        try:
            run(bad, **options)
        except DivergedError:
            assert bad
        else:
            assert not bad
    return stream.getvalue()


def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the bar at each `show`, not five times a second."""
    plain = _progress.Bar.show

    def show(self: Any, *args: Any, **more: Any) -> None:
        plain(self, *args, **more)
        self.rich.refresh()

    monkeypatch.setattr(_progress.Bar, "show", show)


def test_lines_where_there_is_no_terminal(fit, capsys):
    run, count, line, _ = fit
    run(False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == count and re.fullmatch(line, lines[0]), lines[0]


def test_a_terminal_gets_a_bar_and_the_lines(fit, monkeypatch):
    run, _, line, bar = fit
    drawn(monkeypatch)
    written = on_terminal(run)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert re.search(bar, text), text
    lines = [row.strip() for row in re.split(r"[\r\n]+", text) if re.fullmatch(line, row.strip())]
    assert len(lines) == 1 and "ETA" in text
    assert written.endswith("\x1b[2K"), "the bar is gone at the end"


def test_silence(fit, capsys):
    assert on_terminal(fit[0], verbose=False) == ""
    out, err = capsys.readouterr()
    assert out == err == ""


def test_a_failed_fit_gives_the_terminal_back(fit):
    written = on_terminal(fit[0], bad=True)
    hidden, shown = (written.count(f"\x1b[?25{mode}") for mode in "lh")
    assert hidden == shown == 1, "the cursor is there again"


# -------------------------------------------------------------------------------------- notebooks


@pytest.fixture
def notebook(monkeypatch) -> list[Any]:
    """As if this ran in a kernel that has ipywidgets; returns what is displayed."""
    displayed: list[Any] = []
    kernel = SimpleNamespace(kernel=object())
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: kernel  # type: ignore[attr-defined]
    ipython.display = display  # type: ignore[attr-defined]
    display.display = displayed.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(_progress.importlib.util, "find_spec", lambda name: name)
    return displayed


def test_a_notebook_gets_a_bar_if_it_can_draw_one(notebook, monkeypatch):
    display = _progress.make_display()
    assert isinstance(display, _progress.Bar) and display.console.is_jupyter
    assert isinstance(make_progress(), BarProgress)
    assert type(_progress.make_display(io.StringIO())) is _progress.Lines, "a file is no notebook"
    monkeypatch.setattr(_progress.importlib.util, "find_spec", lambda name: None)
    assert type(_progress.make_display()) is _progress.Lines
    assert isinstance(make_progress(), LineProgress)


class SimpleOutput:
    """Stands in for the widget in which rich draws."""

    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...
    def clear_output(self, wait: bool = False) -> None: ...
    def close(self) -> None: ...


def test_messages_in_a_notebook_are_plain_text(notebook, monkeypatch, capsys):
    ipywidgets = ModuleType("ipywidgets")
    ipywidgets.Output = SimpleOutput  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ipywidgets", ipywidgets)
    with _progress.make_display() as display:
        display.start(3, label="step")
        display.message("epoch [1/2]")
        out = capsys.readouterr().out
    assert out == "epoch [1/2]\n"
    assert any(isinstance(shown, SimpleOutput) for shown in notebook), "the bar's widget"


def test_ipython_in_a_terminal_is_no_notebook(notebook, monkeypatch):
    shell = SimpleNamespace()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
    assert not _progress.in_notebook()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    assert not _progress.in_notebook()
