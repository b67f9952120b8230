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
from tests.interchange.onnx_cases import BATCHES, Case, cases, difference, prepared

PAGE = Path(__file__).parents[1] / "docs" / "onnx.md"

TEXT = """# ONNX export, layer by layer

```python
import gpulayers
from gpulayers.interchange import export_onnx

network = gpulayers.models.lenet()
export_onnx(network, "lenet.onnx", input_shape=(28, 28, 1))
```

writes a model that every ONNX runtime reads (opset {opset}; `pip install onnx`).
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

## What has no form in ONNX

An `InterchangeError` names the layer and its place in the network:

- `RBM` draws random numbers;
- cells inside a network remember their state from call to call; alone, `RNNCell`, `LSTMCell` and
  `GRUCell` take it as an input and give the new one;
- layers, wrappers and activations of your own, whose formula gpulayers does not know;
- bfloat16 parameters (DTypeError): convert them to float32 first.

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
    *first, last = (str(n) for n in BATCHES)
    text = TEXT.format(
        opset=OPSET,
        count=len(cases()),
        batches=f"{', '.join(first)} and {last}",
        version=gpulayers.__version__,
        versions=", ".join(f"{name} {number}" for name, number in versions.items()),
        rows="\n".join(rows),
    )
    options.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
