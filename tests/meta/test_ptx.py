"""tests.support.ptx: what instructions do, and what it refuses; kernels written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.ptx import PtxError, load

REGISTERS = """
    .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<40>; .reg .f32 %f<10>; .reg .b64 %d<20>;
    .reg .f64 %g<10>;
"""
#: every thread's number, and its places in two arrays of 8 bytes and 4 bytes a thread
PLACES = """
    mov.u32 %r0, %tid.x; ld.param.u64 %d0, [x]; ld.param.u64 %d1, [y];
    mul.wide.u32 %d2, %r0, 16; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;
"""


def run(body: str, *args: Any, threads: int = 32, shared: int = 0, variables: str = "") -> None:
    """Runs a body with the parameters x and y."""
    text = f"{variables}\n.visible .entry k(.param .u64 x, .param .u64 y)\n{{{REGISTERS}{PLACES}"
    load(f"{text}{body}\nret;\n}}\n", "k")((1,), (threads,), args, shared)


X = np.random.default_rng(0).integers(0, 2**32, (32, 4), dtype=np.uint32)
X[:5, 0] = 0, 1, 2**31, 2**32 - 1, 5
X[:9, 2] = 0, 31, 32, 33, 4, 8, 255, 16, 1


def _integers(a: int, b: int, c: int) -> dict[str, int]:
    """Three words by Python's integers, as the ISA's formulas have them."""
    s, t = (v - (v >> 31 << 32) for v in (a, b))
    both, low, start = b << 32 | a, c & 31, c & 255
    return {
        "add.s32 %r9, %r1, %r2": a + b,
        "mul.lo.s32 %r9, %r1, %r2": a * b,
        "mul.hi.u32 %r9, %r1, %r2": a * b >> 32,
        "mul.hi.s32 %r9, %r1, %r2": s * t >> 32,
        "mad.lo.s32 %r9, %r1, %r2, %r3": a * b + c,
        "div.s32 %r9, %r1, -7": int(s / -7),
        "rem.s32 %r9, %r1, 10": s - 10 * int(s / 10),
        "shl.b32 %r9, %r1, %r3": a << min(c, 32),
        "shr.u32 %r9, %r1, %r3": a >> min(c, 32),
        "shr.s32 %r9, %r1, %r3": s >> min(c, 31),
        "shf.l.wrap.b32 %r9, %r1, %r2, %r3": both << low >> 32,
        "shf.r.clamp.b32 %r9, %r1, %r2, %r3": both >> min(c, 32),
        "bfe.u32 %r9, %r1, %r3, 7": a >> start & 127,
        "bfi.b32 %r9, %r1, %r2, %r3, 5": (b & ~(31 << start)) | ((a & 31) << start),
        "prmt.b32 %r9, %r1, %r2, 0x5410": (b & 0xFFFF) << 16 | (a & 0xFFFF),
        "popc.b32 %r9, %r1": a.bit_count(),
        "clz.b32 %r9, %r1": 32 - a.bit_length(),
        "brev.b32 %r9, %r1": int(f"{a:032b}"[::-1], 2),
        "bfind.u32 %r9, %r1": a.bit_length() - 1,
        "min.s32 %r9, %r1, %r2": min(s, t),
        "max.u32 %r9, %r1, %r2": max(a, b),
        "setp.lt.s32 %p1, %r1, %r2; selp.b32 %r9, 1, 0, %p1": s < t,
        "setp.lo.or.u32 %p1, %r1, %r2, %p0; selp.b32 %r9, 1, 0, %p1": a < b,
        "setp.le.s32 %p1|%p2, %r1, %r2; selp.b32 %r9, 1, 0, %p2": s > t,
        "cvt.s64.s32 %d9, %r1; shr.u64 %d9, %d9, 32; cvt.u32.u64 %r9, %d9": s >> 32,
        "cvt.u32.u16 %r9, %r1": a & 0xFFFF,
        "cvt.s32.s8 %r9, %r1": (a & 255) - (a >> 7 << 8 & 256),
        "mul.wide.s32 %d9, %r1, %r2; shr.u64 %d9, %d9, 32; cvt.u32.u64 %r9, %d9": s * t >> 32,
        "mov.b64 %d9, {%r1, %r2}; mov.b64 {_, %r9}, %d9": b,
        "mov.u32 %r9, 7; @%p0 mov.u32 %r9, 8": 7,
    }


@pytest.mark.parametrize("instruction", _integers(1, 1, 1))
def test_integers(instruction: str) -> None:
    y = np.zeros((32, 4), np.uint32)
    false = "setp.ne.s32 %p0, %r0, %r0;"
    load_three = "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d3]; and.b32 %r3, %r3, 255;"
    run(f"{load_three} {false} {instruction}; st.global.u32 [%d4], %r9;", X, y)
    want = [_integers(int(a), int(b), int(c) & 255).get(instruction) for a, b, c, _ in X]
    np.testing.assert_array_equal(y[:, 0], np.array([w % 2**32 for w in want], np.uint32))  # type: ignore[operator]


ONE, BELOW = 1.0, 1 - 2.0**-24
FLOATS = {
    # 1 + 2^-30 lies between 1 and its neighbour
    "add.rz.f32 %f9, 0f3F800000, 0f30800000": 1.0,
    "add.rp.f32 %f9, 0f3F800000, 0f30800000": 1 + 2.0**-23,
    "add.rm.f32 %f9, 0f3F800000, 0fB0800000": BELOW,
    "add.rn.f32 %f9, 0f3F800000, 0fB0800000": 1.0,
    "fma.rm.f32 %f9, 0f3F800001, 0f3F800001, 0fBF800000": 2.0**-22,
    "fma.rn.f32 %f9, 0f3F800001, 0f3F800001, 0fBF800002": 2.0**-46,
    "add.ftz.f32 %f9, 0f00000001, 0f00000000": 0.0,
    "add.f32 %f9, 0f00000001, 0f00000000": 2.0**-149,
    "cvt.ftz.sat.f32.f32 %f9, 0fFFC00000": 0.0,
    "max.f32 %f9, 0fFFC00000, 0fBF800000": -1.0,
    "copysign.f32 %f9, 0f80000000, 0f40000000": -2.0,
    "cvt.rni.f32.f32 %f9, 0f40200000": 2.0,
    "cvt.rzi.f32.f32 %f9, 0fC0200000": -2.0,
    "cvt.rn.f32.s32 %f9, 16777217": 2.0**24,
    "cvt.rp.f32.s32 %f9, 16777217": 2.0**24 + 2,
    "cvt.rzi.s32.f32 %r9, 0fCF800000; cvt.rn.f32.s32 %f9, %r9": -(2.0**31),
    # half way to the next of TF32: away from zero, and to even, down, up, of a subnormal number too
    "cvt.rna.tf32.f32 %r9, 0f3F801000; mov.b32 %f9, %r9": 1 + 2.0**-10,
    "cvt.rn.tf32.f32 %r9, 0f3F801000; mov.b32 %f9, %r9": 1.0,
    "cvt.rn.tf32.f32 %r9, 0fBF803000; mov.b32 %f9, %r9": -1 - 2.0**-9,
    "cvt.rn.tf32.f32 %r9, 0f3F801001; mov.b32 %f9, %r9": 1 + 2.0**-10,
    "cvt.rn.tf32.f32 %r9, 0f00003000; mov.b32 %f9, %r9": 2.0**-135,
    "cvt.rn.tf32.f32 %r9, 0f00001000; mov.b32 %f9, %r9": 0.0,
    "cvt.rn.tf32.f32 %r9, 0f7F7FFFFF; mov.b32 %f9, %r9": np.inf,
    "cvt.rn.tf32.f32 %r9, 0fFF800000; mov.b32 %f9, %r9": -np.inf,
    # any NaN becomes the one of all ones but the sign
    "cvt.rn.tf32.f32 %r9, 0fFF800001; sub.u32 %r9, %r9, 0x7FFFFFFF; cvt.rn.f32.u32 %f9, %r9": 0.0,
    "cvt.rn.f16.f32 %h1, 0f3F801000; cvt.f32.f16 %f9, %h1": 1.0,
    "cvt.rn.bf16.f32 %h1, 0f3F818000; mov.b32 %f9, {0, %h1}": 1 + 2.0**-6,
    # 2^24 + 2^16 + 1 is more than half way to the next one
    "cvt.rn.bf16.s32 %h1, 16842753; mov.b32 %f9, {0, %h1}": 2.0**24 + 2**17,
    "cvt.rn.bf16.s32 %h1, 16842752; mov.b32 %f9, {0, %h1}": 2.0**24,
    "cvt.rn.bf16x2.f32 %r9, 0f40000000, 0f40400000; mov.b32 {_, %h1}, %r9;mov.b32 %f9, {0, %h1}": 2,
    "ex2.approx.ftz.f32 %f9, 0f40400000": 8.0,
    "rcp.approx.ftz.f32 %f9, 0f40800000": 0.25,
    "slct.f32.f32 %f9, 0f40000000, 0f40400000, 0f7FC00000": 3.0,
    "setp.ltu.f32 %p1, 0f7FC00000, 0f3F800000; selp.f32 %f9, 0f3F800000, 0f00000000, %p1": 1.0,
    "setp.ne.f32 %p1, 0f7FC00000, 0f3F800000; selp.f32 %f9, 0f3F800000, 0f00000000, %p1": 0.0,
    # (1 + 2^-52)^2 - (1 + 2^-51) is 2^-104, which the sum of rounded products has lost
    "fma.rn.f64 %g9, 0d3FF0000000000001, 0d3FF0000000000001, 0dBFF0000000000002;"
    "cvt.rn.f32.f64 %f9, %g9": 2.0**-104,
}


@pytest.mark.parametrize("instruction", FLOATS)
def test_floats(instruction: str) -> None:
    y = np.full((32, 4), np.nan, np.float32)
    run(f"{instruction}; st.global.f32 [%d4], %f9;", None, y)
    np.testing.assert_array_equal(y[:, 0], np.float32(FLOATS[instruction]))


# ------------------------------------------------------------------------------ warps

#: the ISA's formulas for row and column of number i of a lane's fragment
_G, _T = np.arange(32) // 4, np.arange(32) % 4
FRAGMENTS: dict[str, tuple[str, int, Callable[[int], Any], Callable[[int], Any]]] = {
    "tf32": (
        "m16n8k8",
        8,
        lambda i: (_G + 8 * (i in (1, 3)), _T + 4 * (i > 1)),
        lambda i: (_T + 4 * i, _G),
    ),
    **{
        kind: (
            "m16n8k16",
            16,
            lambda i: (_G + 8 * (i not in (0, 1, 4, 5)), 2 * _T + (i & 1) + 8 * (i >= 4)),
            lambda i: (2 * _T + (i & 1) + 8 * (i >= 2), _G),
        )
        for kind in ("f16", "bf16")
    },
}
MMA = """
    ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%d3]; ld.global.v2.u32 {{%r5, %r6}}, [%d3 + 512];
    ld.global.v4.f32 {{%f1, %f2, %f3, %f4}}, [%d4];
    mma.sync.aligned.{0}.row.col.f32.{1}.{1}.f32 {{%f5, %f6, %f7, %f8}}, {{%r1, %r2, %r3, %r4}},
        {{%r5, %r6}}, {{%f1, %f2, %f3, %f4}};
    st.global.v4.f32 [%d4], {{%f5, %f6, %f7, %f8}};
"""


def _halves(values: np.ndarray, kind: str) -> np.ndarray:
    """(numbers, lanes) as registers (lanes, words)."""
    if kind == "tf32":
        return values.astype("f4").view("u4").T | 0x1FFF  # which are not looked at
    bits = values.astype("f2").view("u2") if kind == "f16" else values.astype("f4").view("u4") >> 16
    return np.ascontiguousarray(bits.T.astype("u2")).view("u4")


@pytest.mark.parametrize("kind", FRAGMENTS)
def test_product_of_a_warp(kind: str) -> None:
    shape, terms, of_a, of_b = FRAGMENTS[kind]
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-60, 60, size) / 8 for size in ((16, terms), (terms, 8)))
    c = rng.integers(-60, 60, (16, 8)).astype("f4")
    per = 1 if kind == "tf32" else 2
    x = np.zeros((64, 4), np.uint32)
    x[:32] = _halves(np.array([a[of_a(i)] for i in range(4 * per)]), kind)
    x[32:, :2] = _halves(np.array([b[of_b(i)] for i in range(2 * per)]), kind)
    places = [(_G + 8 * (i > 1), 2 * _T + (i & 1)) for i in range(4)]
    y = np.ascontiguousarray(np.array([c[place] for place in places]).T)
    run(MMA.format(shape, kind), x, y)
    want = a @ b + c
    np.testing.assert_array_equal(y, np.array([want[place] for place in places]).T)


ROWS = """
    mov.u32 %r8, room; shl.b32 %r9, %r0, 4; add.s32 %r9, %r8, %r9;
    ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%d3]; st.shared.v4.u32 [%r9], {{%r1, %r2, %r3, %r4}};
    bar.sync 0; xor.b32 %r10, %r9, 16;
    ldmatrix.sync.aligned.m8n8.x4{0}.shared.b16 {{%r1, %r2, %r3, %r4}}, [%r10{1}];
    st.global.v4.u32 [%d4], {{%r1, %r2, %r3, %r4}};
"""
ROOM = ".extern .shared .align 1024 .b8 room[];"  # so that ^ keeps places within it


@pytest.mark.parametrize("way", ["", ".trans"])
def test_matrices_for_a_warp(way: str) -> None:
    x = np.random.default_rng(0).integers(0, 2**16, (4, 8, 8)).astype("u2")
    y = np.zeros((32, 4), "u4")
    run(ROWS.format(way, ""), x.view("u4"), y, shared=512, variables=ROOM)
    rows = x[:, np.arange(8) ^ 1]  # lane 8 i + r names its neighbour's row
    rows = rows.transpose(0, 2, 1) if way else rows
    want = [
        [rows[m, lane // 4, lane % 4 * 2 + i] for m in range(4) for i in (0, 1)]
        for lane in range(32)
    ]
    np.testing.assert_array_equal(y.view("u2"), want)


@pytest.mark.parametrize(
    ("mode", "by", "clamp", "want"),
    [
        ("bfly", 5, 31, lambda lane: lane ^ 5),
        ("up", 3, 0, lambda lane: lane - 3 if lane >= 3 else lane),
        ("down", 9, 31, lambda lane: lane + 9 if lane + 9 < 32 else lane),
        ("idx", 6, 31, lambda lane: 6),
        ("down", 1, 8 * 256 * 3 + 7, lambda lane: lane + (lane % 8 < 7)),  # in groups of 8
        ("idx", 2, 8 * 256 * 3 + 7, lambda lane: lane // 8 * 8 + 2),
    ],
)
def test_shuffles(mode: str, by: int, clamp: int, want: Callable[[int], int]) -> None:
    y = np.zeros((32, 4), "u4")
    body = f"shfl.sync.{mode}.b32 %r1|%p1, %r0, {by}, {clamp}, -1; st.global.u32 [%d4], %r1;"
    run(body, None, y)
    np.testing.assert_array_equal(y[:, 0], [want(lane) for lane in range(32)])


def test_lanes_wait_for_one_another() -> None:
    """Those that went the other way come, though their instructions stand behind."""
    y = np.zeros((64, 4), "u4")
    body = """
        and.b32 %r1, %r0, 1; setp.eq.s32 %p1, %r1, 1; mov.u32 %r2, 1; @%p1 bra odd;
    meet: shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1; st.global.u32 [%d4], %r3; ret;
    odd: mov.u32 %r2, 2; bra.uni meet;
    """
    run(body, None, y, threads=64)
    np.testing.assert_array_equal(y[:, 0], [2, 1] * 32)


# ------------------------------------------------------------------------------ copies, errors

COPY = """
    mov.u32 %r8, room; shl.b32 %r9, %r0, 4; add.s32 %r9, %r8, %r9; mov.u32 %r7, 8;
    cp.async.cg.shared.global [%r9], [%d3], 16, %r7; cp.async.commit_group;
    {wait} {barrier} xor.b32 %r10, %r9, {other};
    ld.shared.v4.u32 {{%r1, %r2, %r3, %r4}}, [%r10]; st.global.v4.u32 [%d4], {{%r1, %r2, %r3, %r4}};
"""
WAIT, SYNC = "cp.async.wait_group 0;", "bar.sync 0;"


def test_copies_arrive_with_zeros_behind() -> None:
    y = np.full((64, 4), 7, "u4")
    x = np.arange(256, dtype="u4").reshape(64, 4)
    body = COPY.format(wait=WAIT, barrier=SYNC, other=512)
    run(body, x, y, threads=64, shared=1024, variables=ROOM)
    want = x[np.arange(64) ^ 32].copy()
    want[:, 2:] = 0
    np.testing.assert_array_equal(y, want)


BIG = "mov.u32 %r8, room; shl.b32 %r9, %r0, 2; add.s32 %r9, %r8, %r9;"
STORE = f"{BIG} st.shared.u32 [%r9], %r0;"
SOME = "setp.lt.s32 %p1, %r0, 7;"
REFUSED = {
    "misaligned": ("misaligned-access", "ld.global.v2.u32 {%r1, %r2}, [%d3 + 4];"),
    "beyond": ("out-of-bounds", "ld.global.u32 %r1, [%d3 + 16];"),
    "before": ("out-of-bounds", "st.global.u32 [%d4 + -4], %r0;"),
    "32 bits": (
        "out-of-bounds",
        "cvt.u32.u64 %r1, %d3; cvt.u64.u32 %d3, %r1; ld.global.u32 %r1, [%d3];",
    ),
    "null": ("out-of-bounds", "mov.u64 %d3, 0; ld.global.u32 %r1, [%d3];"),
    "read-only": ("read-only-path", "ld.global.nc.u32 %r1, [%d4]; st.global.u32 [%d4], %r1;"),
    "shared beyond": ("out-of-bounds", f"{BIG} ld.shared.u32 %r1, [%r9 + 2048];"),
    "uninitialised": ("uninitialised-shared", f"{BIG} ld.shared.u32 %r1, [%r9];"),
    "no barrier": ("race-in-block", f"{STORE} xor.b32 %r9, %r9, 4; ld.shared.u32 %r1, [%r9];"),
    "written too soon": (
        "race-in-block",
        f"{STORE} {SYNC} xor.b32 %r10, %r9, 128;"
        "ld.shared.u32 %r1, [%r10]; st.shared.u32 [%r9], %r1;",
    ),
    "copy not waited for": ("copy-under-way", COPY.format(wait="", barrier=SYNC, other=0)),
    "group not waited for": (
        "copy-under-way",
        COPY.format(wait="cp.async.wait_group 1;", barrier=SYNC, other=0),
    ),
    "copy without barrier": ("race-in-block", COPY.format(wait=WAIT, barrier="", other=512)),
    "copy too large": (
        "copy-size",
        COPY.format(wait=WAIT, barrier=SYNC, other=0).replace("%r7, 8", "%r7, 17"),
    ),
    "row of a matrix": ("misaligned-access", ROWS.format("", " + 8")),
    "barrier": ("barrier-divergence", f"{SOME} @%p1 bra out; bar.sync 0; out:"),
    "other barriers": (
        "barrier-divergence",
        f"{SOME} @%p1 bra out; bar.sync 0; bra.uni end; out: bar.sync 0; end:",
    ),
    "lanes that left": (
        "shuffle-source",
        f"{SOME} @%p1 bra out; shfl.sync.bfly.b32 %r1, %r0, 8, 31, -1; bra.uni end; out: ret; end:",
    ),
    "mask without itself": ("warp-mask", "shfl.sync.bfly.b32 %r1, %r0, 1, 31, 3;"),
    "mask of others": (
        "warp-divergence",
        f"{SOME} @%p1 bra out; shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1; out: bar.sync 0;",
    ),
    "part of a product": (
        "warp-divergence",
        f"{SOME} @%p1 bra out; {MMA.format('m16n8k8', 'tf32')} out:",
    ),
    "division": ("undefined-result", "xor.b32 %r1, %r0, %r0; div.s32 %r2, %r0, %r1;"),
    "no end": ("timeout", "again: bra again;"),
    "unknown": ("unknown-instruction", "dp4a.u32.u32 %r1, %r0, %r0, %r0;"),
    "unknown form": ("unknown-instruction", "mul24.lo.s32 %r1, %r0, %r0;"),
    "unknown rounding": ("unknown-instruction", "cvt.rz.tf32.f32 %r1, 0f3F800000;"),
    "too wide": ("unknown-instruction", "add.s64 %r1, %r0, %r0;"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.ptx.machine.MOST_STEPS", 1000)
    kind, body = REFUSED[name]
    x, y = np.zeros((64, 4), "u4"), np.zeros((64, 4), "u4")
    if name == "part of a product":
        x = np.zeros((96, 4), "u4")
    with pytest.raises(PtxError) as caught:
        run(body, x, y, threads=64, shared=2048, variables=ROOM)
    assert caught.value.kind == kind
    assert "PTX line" in str(caught.value) or kind == "read-only-path"
