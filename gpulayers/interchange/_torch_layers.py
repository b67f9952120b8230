"""Where PyTorch keeps the numbers of each layer, and how they lie there.

| ours | torch.nn | |
|---|---|---|
| FullyConnected | Linear | weight is W transposed |
| Conv1D, Conv2D | Conv1d, Conv2d | (taps, in, out) here, (out, in, taps) there |
| Deconv2D | ConvTranspose2d | (taps, in, out) here, (in, out, taps) there |
| BatchNorm1D, BatchNorm2D | BatchNorm1d, BatchNorm2d | the same |
| LayerNorm1D, GroupNorm | LayerNorm, GroupNorm | the same |
| LayerNorm2D | LayerNorm over (ch, rows, cols) | channels last here, first there |
| Embedding | Embedding | the same |
| RNN, LSTM, GRU and their cells | RNN, RNNCell, ... | gates i, f, g, o and r, z, n there |
| BidirectionalLSTM | LSTM, bidirectional | a second set of entries, ``_reverse`` |
| MultiHeadedAttentionModule | MultiheadAttention | three projections on top of each other |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from gpulayers import layers, modules
from gpulayers.errors import InterchangeError

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Form:
    """One kind of layer in both libraries; both functions are of plain NumPy arrays.

    Attributes
    ----------
    take : PyTorch's entries -> our parameters
    give : our parameters -> PyTorch's entries
    needed : entries that must be there
    optional : entries that may be missing, with what they then are
    features : our parameters whose first axis runs over the features of a flattened input
    """

    take: Callable[[Arrays], Arrays]
    give: Callable[[Arrays], Arrays]
    needed: tuple[str, ...]
    optional: dict[str, float]
    features: tuple[str, ...] = ()

    def checked(self, entries: Arrays) -> Arrays:
        """The entries, all that are known, those that are missing filled in by `take`."""
        known = (*self.needed, *self.optional, "num_batches_tracked")
        missing = [key for key in self.needed if key not in entries]
        unknown = [key for key in entries if key not in known]
        if missing or unknown:
            raise InterchangeError(
                f"expected the entries {', '.join((*self.needed, *self.optional))}, got "
                f"{', '.join(entries)}"
            )
        return entries


def _or_zeros(entries: Arrays, key: str, size: int) -> np.ndarray:
    like = next(iter(entries.values())).dtype
    return entries.get(key, np.zeros(size, like))


# ------------------------------------------------------------------------- dense and convolution


def _linear(turn: tuple[int, ...], bias_shape: Callable[[int], tuple[int, ...]], out: int) -> Form:
    """A product and a bias. `turn` is PyTorch's weight -> W; axis `out` of it are the outputs."""
    back = tuple(int(i) for i in np.argsort(turn))

    def take(entries: Arrays) -> Arrays:
        weight = _of_rank(entries, "weight", len(turn))
        bias = _or_zeros(entries, "bias", weight.shape[out])
        return {"W": weight.transpose(turn), "b": bias.reshape(bias_shape(bias.size))}

    def give(ours: Arrays) -> Arrays:
        return {"weight": ours["W"].transpose(back), "bias": ours["b"].reshape(-1)}

    features = ("W",) if len(turn) == 2 else ()
    return Form(take, give, ("weight",), {"bias": 0.0}, features)


def _of_rank(entries: Arrays, key: str, ndim: int) -> np.ndarray:
    array = entries[key]
    if array.ndim != ndim:
        raise InterchangeError(f"expected {key} with {ndim} axes, got shape {array.shape}")
    return array


# ---------------------------------------------------------------------------------- normalisation


def _norm(names: tuple[str, ...], theirs: tuple[str, ...], image: bool = False) -> Form:
    """Vectors under other names; `image`: (ch, rows, cols) there, (rows, cols, ch) here."""
    fill = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}

    def take(entries: Arrays) -> Arrays:
        found = [entries[t] for t in theirs if t in entries]
        if not found:
            raise InterchangeError(f"expected some of the entries {', '.join(theirs)}, got none")
        filled = {t: entries.get(t, np.full_like(found[0], fill[t])) for t in theirs}
        if image:
            filled = {t: np.moveaxis(_of_rank(filled, t, 3), 0, 2) for t in theirs}
        return {ours: filled[t] for ours, t in zip(names, theirs, strict=True)}

    def give(ours: Arrays) -> Arrays:
        given = {t: ours[n] for n, t in zip(names, theirs, strict=True)}
        if image:
            given = {t: np.moveaxis(array, 2, 0) for t, array in given.items()}
        if "running_mean" in given:
            given["num_batches_tracked"] = np.array(0, np.int64)
        return given

    return Form(take, give, (), {t: fill[t] for t in theirs}, () if image else names)


_AFFINE = ("scaler", "intercept"), ("weight", "bias")
_BATCH_NORM = _norm(
    (*_AFFINE[0], "running_mean", "running_var"), (*_AFFINE[1], "running_mean", "running_var")
)


# -------------------------------------------------------------------------------------- recurrent

# Our gates in PyTorch's order: i, f, g, o (input, forget, candidate, output) and r, z, n.
_LSTM_ORDER, _GRU_ORDER = "ufco", "rzn"


def _rnn_take(entries: Arrays) -> Arrays:
    ih, hh, b_ih, b_hh = entries["ih"], entries["hh"], entries["b_ih"], entries["b_hh"]
    return {"Wax": ih.T, "Waa": hh.T, "bx": b_ih[:, None], "ba": b_hh[:, None]}


def _rnn_give(ours: Arrays) -> Arrays:
    return {
        "ih": ours["Wax"].T,
        "hh": ours["Waa"].T,
        "b_ih": ours["bx"].reshape(-1),
        "b_hh": ours["ba"].reshape(-1),
    }


def _gates_take(entries: Arrays, order: str) -> Arrays:
    """A gate's W: its rows for the state above those for the input."""
    split = {key: np.split(array, len(order)) for key, array in entries.items()}
    ours: Arrays = {}
    for k, gate in enumerate(order):
        ours[f"W{gate}"] = np.concatenate([split["hh"][k].T, split["ih"][k].T])
        ours[f"b{gate}"] = (split["b_ih"][k] + split["b_hh"][k])[None]
    return ours


def _gates_give(ours: Arrays, order: str) -> Arrays:
    n_out = ours[f"W{order[0]}"].shape[1]
    biases = np.concatenate([ours[f"b{gate}"].reshape(-1) for gate in order])
    return {
        "ih": np.concatenate([ours[f"W{gate}"][n_out:].T for gate in order]),
        "hh": np.concatenate([ours[f"W{gate}"][:n_out].T for gate in order]),
        "b_ih": biases,
        "b_hh": np.zeros_like(biases),
    }


def _gru_take(entries: Arrays) -> Arrays:
    """The bias of the state's product inside the reset gate stays apart."""
    inner = np.split(entries["b_hh"], 3)
    outer = np.concatenate([inner[0], inner[1], np.zeros_like(inner[2])])
    return {**_gates_take({**entries, "b_hh": outer}, _GRU_ORDER), "ba": inner[2][None]}


def _gru_give(ours: Arrays) -> Arrays:
    entries = _gates_give(ours, _GRU_ORDER)
    entries["b_hh"][-ours["ba"].size :] = ours["ba"].reshape(-1)
    return entries


def _recurrent(
    take: Callable[[Arrays], Arrays], give: Callable[[Arrays], Arrays], suffix: str
) -> Form:
    """`take` and `give` know the four arrays as ih, hh, b_ih, b_hh."""
    names = {
        "ih": f"weight_ih{suffix}",
        "hh": f"weight_hh{suffix}",
        "b_ih": f"bias_ih{suffix}",
        "b_hh": f"bias_hh{suffix}",
    }

    def take_named(entries: Arrays) -> Arrays:
        short = {key: entries[name] for key, name in names.items() if name in entries}
        rows = _of_rank({"weight_ih": short["ih"]}, "weight_ih", 2).shape[0]
        for key in ("b_ih", "b_hh"):
            short[key] = _or_zeros(entries, names[key], rows)
        hidden = short["hh"].shape[1]
        if rows % hidden or short["hh"].shape[0] != rows:
            raise InterchangeError(
                f"weight_ih {short['ih'].shape} and weight_hh {short['hh'].shape} do not fit"
            )
        return take(short)

    def give_named(ours: Arrays) -> Arrays:
        return {names[key]: array for key, array in give(ours).items()}

    optional = {names["b_ih"]: 0.0, names["b_hh"]: 0.0}
    return Form(take_named, give_named, (names["ih"], names["hh"]), optional)


def _lstm(suffix: str) -> Form:
    take = partial(_gates_take, order=_LSTM_ORDER)
    return _recurrent(take, partial(_gates_give, order=_LSTM_ORDER), suffix)


def _both_directions(ahead: Form, back: Form) -> Form:
    """Our components cell_fwd and cell_bwd as one module of PyTorch's."""
    parts = {"cell_fwd": ahead, "cell_bwd": back}

    def take(entries: Arrays) -> Arrays:
        ours: Arrays = {}
        for key, form in parts.items():
            known = (*form.needed, *form.optional)
            mine = {n: array for n, array in entries.items() if n in known}
            ours.update({f"{key}.{n}": array for n, array in form.take(mine).items()})
        return ours

    def give(ours: Arrays) -> Arrays:
        entries: Arrays = {}
        for key, form in parts.items():
            mine = {n.partition(".")[2]: a for n, a in ours.items() if n.startswith(f"{key}.")}
            entries.update(form.give(mine))
        return entries

    needed = (*ahead.needed, *back.needed)
    return Form(take, give, needed, {**ahead.optional, **back.optional})


# -------------------------------------------------------------------------------------- attention


def _attention_take(entries: Arrays) -> Arrays:
    weight = _of_rank(entries, "in_proj_weight", 2)
    if weight.shape[0] != 3 * weight.shape[1]:
        raise InterchangeError(f"expected in_proj_weight (3 d, d), got shape {weight.shape}")
    biases = np.split(_or_zeros(entries, "in_proj_bias", weight.shape[0]), 3)
    out = _or_zeros(entries, "out_proj.bias", weight.shape[1])
    ours: Arrays = {"O.W": entries["out_proj.weight"].T, "O.b": out[None]}
    for name, part, bias in zip("QKV", np.split(weight, 3), biases, strict=True):
        ours |= {f"{name}.W": part.T, f"{name}.b": bias[None]}
    return ours


def _attention_give(ours: Arrays) -> Arrays:
    return {
        "in_proj_weight": np.concatenate([ours[f"{name}.W"].T for name in "QKV"]),
        "in_proj_bias": np.concatenate([ours[f"{name}.b"].reshape(-1) for name in "QKV"]),
        "out_proj.weight": ours["O.W"].T,
        "out_proj.bias": ours["O.b"].reshape(-1),
    }


_ATTENTION = Form(
    _attention_take,
    _attention_give,
    ("in_proj_weight", "out_proj.weight"),
    {"in_proj_bias": 0.0, "out_proj.bias": 0.0},
)
_EMBEDDING = Form(
    lambda entries: {"W": _of_rank(entries, "weight", 2)},
    lambda ours: {"weight": ours["W"]},
    ("weight",),
    {},
)

FORMS: dict[type, Form] = {
    layers.FullyConnected: _linear((1, 0), lambda n: (1, n), 0),
    layers.Conv1D: _linear((2, 1, 0), lambda n: (1, 1, n), 0),
    layers.Conv2D: _linear((2, 3, 1, 0), lambda n: (1, 1, 1, n), 0),
    layers.Deconv2D: _linear((2, 3, 0, 1), lambda n: (1, 1, 1, n), 1),
    layers.BatchNorm1D: _BATCH_NORM,
    layers.BatchNorm2D: _BATCH_NORM,
    layers.LayerNorm1D: _norm(*_AFFINE),
    layers.LayerNorm2D: _norm(*_AFFINE, image=True),
    layers.GroupNorm: _norm(*_AFFINE),
    layers.Embedding: _EMBEDDING,
    layers.RNN: _recurrent(_rnn_take, _rnn_give, "_l0"),
    layers.RNNCell: _recurrent(_rnn_take, _rnn_give, ""),
    layers.LSTM: _lstm("_l0"),
    layers.LSTMCell: _lstm(""),
    layers.GRU: _recurrent(_gru_take, _gru_give, "_l0"),
    layers.GRUCell: _recurrent(_gru_take, _gru_give, ""),
    modules.BidirectionalLSTM: _both_directions(_lstm("_l0"), _lstm("_l0_reverse")),
    modules.MultiHeadedAttentionModule: _ATTENTION,
}
