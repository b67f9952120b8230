"""conv.cu and conv_step.cu compiled for a geometry, as plans have them: whether one of few taps
lies inside is then a bit (conv.cuh). Windows at all edges, and on both sides of what is few."""

from __future__ import annotations

import functools

from tests.kernels import cases_conv, cases_conv_step
from tests.kernels.gold import Geometry

GEOMETRIES = {
    "strides": cases_conv.RUNS,
    "same": Geometry(2, 9, 8, 8, (3, 3), (1, 1), (1, 1, 1, 1)),
    # windows that see nothing, and of two images in a tile
    "padding beyond the kernel": Geometry(3, 3, 4, 8, (2, 3), (1, 1), (3, 4, 5, 3)),
    "dilated": Geometry(2, 8, 11, 16, (3, 2), (1, 1), (2, 1, 0, 3), (2, 5)),
    "point": Geometry(1, 7, 5, 24, (1, 1)),
    "even": Geometry(1, 10, 9, 8, (4, 2), (1, 1), (2, 1, 0, 1)),
    # bit 31, in two shapes; and one tap more
    "32 taps": Geometry(2, 5, 9, 8, (4, 8), (1, 1), (3, 0, 4, 3)),
    "32 rows": Geometry(1, 20, 2, 8, (32, 1), (1, 1), (12, 9, 0, 0)),
    "33 taps": Geometry(2, 5, 11, 8, (3, 11), (1, 1), (1, 1, 5, 5)),
    # more than bits, in rows that would lie beyond them
    "40 taps": Geometry(2, 6, 9, 8, (5, 8), (1, 1), (2, 2, 4, 3)),
    # of a tile's 256 lines, four a tap, some are of taps beyond bit 31
    "small channels": Geometry(1, 7, 9, 4, (3, 3), (1, 1), (1, 1, 1, 1)),
    "strided rows": Geometry(1, 9, 8, 8, (3, 3), (2, 1), (1, 1, 1, 1)),
    "strided cols": Geometry(1, 9, 8, 8, (3, 3), (1, 2), (1, 1, 1, 1)),
}
_POOLED = ("same", "dilated")
#: pixels enough for a block to note 256 of them four times, or two blocks three (conv_notes.cuh)
NOTED = Geometry(2, 27, 23, 8, (3, 3), (1, 1), (1, 1, 1, 1))
_case = functools.partial

CASES = {
    "conv.cu": [
        *(
            _case(cases_conv.forward, g=g, name="conv2d_forward_tensor", special=True)
            for g in GEOMETRIES.values()
        ),
        *(
            _case(
                cases_conv.forward,
                g=GEOMETRIES[which],
                name="conv2d_forward_tensor_large",
                dtype="bfloat16",
                pooled=True,
                special=True,
            )
            for which in _POOLED
        ),
        _case(
            cases_conv.forward,
            g=GEOMETRIES["dilated"],
            name="conv2d_forward_warpgroup",
            dtype="float16",
            special=True,
        ),
        *(
            _case(
                cases_conv.forward,
                g=GEOMETRIES[which],
                name="conv2d_forward_tensor_tall",
                pooled=True,
                special=True,
            )
            for which in _POOLED
        ),
        *(
            _case(cases_conv.forward, g=GEOMETRIES["same"], special=special, depth=3, **more)
            for special in (False, True)
            for more in (
                {"name": "conv2d_forward_tensor_tall", "pooled": True},
                {"name": "conv2d_forward_tensor", "dtype": "bfloat16"},
                {"name": "conv2d_forward_tall"},
                {},
            )
        ),
        # these read number by number, of any count of channels
        _case(cases_conv.forward, g=cases_conv.SKEW, special=True),
        _case(cases_conv.forward, g=cases_conv.RUNS, name="conv2d_forward_tall", special=True),
    ],
    "conv_step.cu": [
        *(
            _case(cases_conv_step.backward, g=g, name="conv2d_backward_tensor", special=True)
            for g in GEOMETRIES.values()
        ),
        *(
            _case(
                cases_conv_step.backward,
                g=GEOMETRIES[which],
                name="conv2d_backward_tensor_large",
                dtype="bfloat16",
                pooled=pooled,
                parts=2,
                special=True,
            )
            for which in _POOLED
            for pooled in (False, True)
        ),
        *(
            _case(
                cases_conv_step.backward,
                g=GEOMETRIES[which],
                name="conv2d_backward_tensor_tall",
                pooled=pooled,
                special=True,
            )
            for which, pooled in (
                *((which, pooled) for which in _POOLED for pooled in (False, True)),
                ("40 taps", False),
                ("small channels", False),
            )
        ),
        *(
            _case(
                cases_conv_step.backward,
                g=GEOMETRIES[which],
                name=f"conv2d_backward{tile}",
                inputs=False,
                special=True,
                depth=depth,
                dtype=dtype,
            )
            for which, tile, dtype, depth in (
                ("strides", "_tensor_tall", "float32", 3),
                ("dilated", "_tensor", "bfloat16", 9),
                ("33 taps", "_tensor_large", "float16", 1),
            )
        ),
        *(
            _case(cases_conv_step.backward, g=NOTED, name=f"conv2d_backward{tile}", **more)
            for tile, more in (
                ("_tensor_tall", {"special": True}),
                ("_tensor_tall", {"parts": 2, "inputs": False, "special": True}),
                ("_tensor", {"dtype": "bfloat16", "parts": 3, "special": True}),
                ("_tensor", {"pooled": True, "special": True}),
                ("_tensor_large", {"dtype": "float16", "inputs": False, "special": True}),
            )
        ),
        _case(
            cases_conv_step.backward,
            g=GEOMETRIES["dilated"],
            name="conv2d_backward_warpgroup",
            dtype="float16",
            special=True,
        ),
        _case(
            cases_conv_step.moments,
            g=GEOMETRIES["padding beyond the kernel"],
            name="conv2d_moments_tensor",
            special=True,
        ),
        _case(cases_conv_step.backward, g=cases_conv_step.TILED, special=True),
        _case(
            cases_conv_step.backward,
            g=cases_conv_step.RUNS,
            name="conv2d_backward_tall",
            special=True,
        ),
    ],
}
