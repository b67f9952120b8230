"""``gpulayers tune``: which kernels are fastest for a network's shapes on this GPU."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import numpy as np

from gpulayers import backend, random
from gpulayers.cli.bench import CLASSES, OTHER_SHAPE, SHAPES
from gpulayers.cli.output import note, print_json
from gpulayers.cli.results import print_table
from gpulayers.models import build

__all__ = ["run"]


def run(options: Namespace) -> int:
    """Measure what is not known yet, or forget all; 0."""
    from gpulayers.cuda import tune
    from gpulayers.cuda.cubins import Store

    if options.clear:
        count = len(tune.own_table().entries)
        tune.own_table().clear()
        Store().clear()
        note(options, f"{count} choices forgotten")
        if options.json:
            print_json({"forgotten": count})
        return 0
    former = backend.default_dtype()
    with backend.use_backend("cupy"):
        if options.dtype is not None:
            backend.set_default_dtype(options.dtype)
        try:
            rows = _tuned(options)
        finally:
            backend.set_default_dtype(former)
    if options.json:
        print_json({"model": options.model, "batch_size": options.batch_size, "measured": rows})
    elif options.quiet:
        print(len(rows))
    elif rows:
        lines = [(_shape_of(row), _found(row)) for row in rows]
        print_table(f"{options.model}, batches of {options.batch_size}", lines)
    else:
        print("nothing to measure: what these shapes need is known, or there is but one way")
    return 0


def _tuned(options: Namespace) -> list[dict[str, Any]]:
    """What was measured in a training step of the network."""
    from gpulayers.cuda import tune

    shape = SHAPES.get(options.model.lower(), OTHER_SHAPE)
    random.seed(0)
    network = build(options.model, CLASSES, shape, optimizer="Adam(lr=0.001)")
    n, values = options.batch_size, np.random.default_rng(0)
    note(options, f"{options.model}, batches of {n}: a step, and each shape in it ...")
    images = values.random((n, *shape), np.float32)
    plan = network.compile(batch_shape=images.shape)
    X = backend.asarray(images, dtype=backend.default_dtype())
    labels = backend.asarray(values.integers(0, CLASSES, n))
    with tune.tuning() as tuning:
        plan.step(X, labels)
    return [
        {
            "operation": key.op,
            "shape": list(key.shape),
            "dtype": key.dtype,
            "choice": result.choice.label,
            "microseconds": result.microseconds,
            "candidates": [
                {
                    "kernel": row.candidate.label,
                    "microseconds": row.microseconds,
                    "why_not": row.why_not,
                }
                for row in result.rows
            ],
        }
        for key, result in tuning.found
    ]


def _shape_of(row: dict[str, Any]) -> str:
    return f"{row['operation']} {'x'.join(str(size) for size in row['shape'])}"


def _found(row: dict[str, Any]) -> str:
    if row["microseconds"] is None:
        return f"{row['choice']}, not measured"
    return f"{row['choice']}, {row['microseconds']:.1f} us"
