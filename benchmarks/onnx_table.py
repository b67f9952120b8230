"""Compare every exported layer with onnxruntime, and write docs/onnx.md.

    python -m benchmarks.onnx_table                   # all cases: the page, and its text here
    python -m benchmarks.onnx_table --only Conv2D     # one class, printed only

From the root of a clone with the extra `dev`. The cases are those of tests/interchange.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

import gpulayers
from gpulayers import backend
from gpulayers.interchange import OPSET, onnx_model
from tests.interchange.onnx_cases import BATCHES, Case, cases, difference, prepared, tried

PAGE = Path(__file__).parents[1] / "docs" / "onnx.md"

TEXT = """# ONNX export, layer by layer

```python
import gpulayers
from gpulayers.interchange import export_onnx

network = gpulayers.models.lenet()
export_onnx(network, "lenet.onnx", input_shape=(28, 28, 1))
```

writes a model of ONNX's own operators (opset {opset}; `pip install onnx`). In float32, the default,
onnxruntime computes all of them; in float64 [it lacks many](#float64-and-float16).
Inputs and outputs are laid out as in gpulayers, channels last; the batch may have any size. It is
the network in evaluation: dropout is left out, batch normalisation uses its running statistics.
Inside, ONNX's convolutions want channels first: a Transpose is written only where the order really
changes, so a convolutional network has two of them. `uint8_input=True` makes the model take bytes.

How close is it? This page is written by one command,

```sh
python -m benchmarks.onnx_table
```

which exports {count} networks, from single layers to whole ones, lets `onnx.checker` check each,
and runs it in onnxruntime on random inputs, in float32, for batches of {batches}. Parameters,
statistics and biases are random too. The difference is max |a - b| / max(1, max |b|) over all
outputs, and the tests hold every case below 1e-5.
Made with gpulayers {version}, {versions}.

| class | cases | max difference | where | ONNX operators |
|---|--:|--:|---|---|
{rows}

## float64 and float16

The model computes in the dtype of the network's parameters. `onnx.checker` passes any; what a
runtime has kernels for is another matter. On the CPU onnxruntime {runtime} refuses {refused} of
these {count} networks in float64, most when the model is loaded (`NOT_IMPLEMENTED : Could not find
an implementation for Conv(11) node`), for want of

| operator | classes that use it |
|---|---|
{lacking}

and computes the others. In float16 it computes all of them (some of it in float32 inside). A
network that was trained or checked in float64 becomes a model that runs everywhere by `dtype`,
which rounds its weights:

```python
gpulayers.set_default_dtype("float64")
network = gpulayers.models.lenet()
export_onnx(network, "lenet32.onnx", input_shape=(28, 28, 1), dtype="float32")
gpulayers.set_default_dtype("float32")
```

On the command line that is `gpulayers export RUN lenet.onnx --dtype float32`.

## What has no form in ONNX

An `InterchangeError` names the layer and its place in the network:

- `RBM` draws random numbers;
- cells inside a network remember their state from call to call; alone, `RNNCell`, `LSTMCell` and
  `GRUCell` take it as an input and give the new one;
- layers, wrappers and activations of your own, whose formula gpulayers does not know;
- bfloat16 parameters (DTypeError), unless `dtype="float32"` converts them.

Recurrent layers begin with zero states and take no mask. With an activation that ONNX's recurrent
operators do not know (`GELU`, `SELU`, `Exponential`) their steps are written out one after another,
which is as right and longer. `BernoulliVAE`, `WGAN_GP` and `Word2Vec` are several networks at once;
export their parts.
"""


def operators(model: Any) -> list[str]:
    """Operators but the last, in order of their first appearance."""
    return list(dict.fromkeys(node.op_type for node in model.graph.node[:-1]))


def measured(group: list[Case]) -> tuple[float, str, list[str]]:
    """The largest difference of a class, its case, and all operators."""
    import onnxruntime

    worst, where, used = -1.0, "", dict[str, None]()
    for case in group:
        layer = prepared(case)
        model = onnx_model(layer, case.shapes if len(case.shapes) > 1 else case.shapes[0])
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        used |= dict.fromkeys(operators(model))
        for n in BATCHES:
            error = difference(layer, case, session, n)
            if error > worst or error != error:
                worst, where = error, case.name.partition(", ")[2] or "-"
    return worst, where, list(used)


def lacking(groups: dict[str, list[Case]], dtype: str) -> tuple[int, dict[str, list[str]]]:
    """How many networks onnxruntime does not compute in `dtype`, and the operators that it then
    names, with the classes whose models have them."""
    refused: list[str] = []
    used: dict[str, set[str]] = {}
    for subject, group in groups.items():
        for case in group:
            layer = prepared(case)
            shapes = case.shapes if len(case.shapes) > 1 else case.shapes[0]
            model = onnx_model(layer, shapes, dtype=dtype)
            used.setdefault(subject, set()).update(operators(model))
            _, named = tried(layer, case, model, dtype)
            refused += [named] if named else []
    return len(refused), {
        name: sorted(subject for subject, has in used.items() if name in has)
        for name in sorted(set(refused))
    }


def main(arguments: list[str] | None = None) -> int:
    import onnx
    import onnxruntime

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", help="a class; no page is written")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    groups: dict[str, list[Case]] = {}
    for case in cases():
        if not options.only or case.subject in options.only:
            groups.setdefault(case.subject, []).append(case)
    if not groups:
        parser.error(f"no such class: {', '.join(options.only)}")
    rows: list[str] = []
    with backend.use_backend("numpy"):
        for name in sorted(groups):
            worst, where, used = measured(groups[name])
            shown = ", ".join(used) or "none: the layer does nothing in evaluation"
            rows.append(f"| `{name}` | {len(groups[name])} | {worst:.1e} | {where} | {shown} |")
    if options.only:
        print("\n".join(rows))
        return 0
    versions = {"Python": platform.python_version(), "NumPy": np.__version__}
    versions |= {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    with backend.use_backend("numpy"):
        refused, missing = lacking(groups, "float64")
        if lacking(groups, "float16")[0]:
            raise RuntimeError("the page says that float16 is computed")
    *first, last = (str(n) for n in BATCHES)
    text = TEXT.format(
        opset=OPSET,
        count=len(cases()),
        batches=f"{', '.join(first)} and {last}",
        version=gpulayers.__version__,
        versions=", ".join(f"{name} {number}" for name, number in versions.items()),
        rows="\n".join(rows),
        runtime=onnxruntime.__version__,
        refused=refused,
        lacking="\n".join(
            f"| {name} | {', '.join(f'`{subject}`' for subject in subjects)} |"
            for name, subjects in missing.items()
        ),
    )
    options.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
