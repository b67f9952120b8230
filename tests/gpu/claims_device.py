"""Claims that compute: dtypes and layouts of results, refusals that come late, capture, kernels."""

from __future__ import annotations

import contextlib
import gc

import numpy as np

from tests.gpu.claims import Raises, claim, grid

UNSUPPORTED = Raises(TypeError, "Unsupported type <class 'numpy.ndarray'>")
CAPTURING = Raises(RuntimeError, "capturing")
SCALE = r"""
template <typename T>
__global__ void scale(const T* x, T* y, T factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}
extern "C" __global__ void reverse(const float* x, float* y) {
    extern __shared__ float tile[];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
"""


# -------------------------------------------------------------- host arrays meet device arrays


@claim(([1.0, 2.0], "float16", "float16", "float32", "int64"))
def uploading(cp, put):
    x = cp.asarray([1, 2], dtype=np.float16)
    kinds = (cp.array(grid(), np.float16), cp.asarray(grid()), cp.asarray([1, 2]))
    return x.get().tolist(), str(x.dtype), *(str(k.dtype) for k in kinds)


@claim([0.0, 7.0, 2.0, 3.0])
def writing_through_a_view_of_one_element(cp, put):
    x = put(grid())
    element = x[0, 1]
    element[...] = 7
    return x[0].get().tolist()


@claim(UNSUPPORTED)
def adding_a_host_array(cp, put):
    return put(grid()) + grid()


@claim(UNSUPPORTED)
def adding_to_a_host_array(cp, put):
    return grid() + put(grid())


@claim(UNSUPPORTED)
def a_ufunc_with_a_host_array(cp, put):
    return cp.maximum(put(grid()), grid())


@claim(UNSUPPORTED)
def in_place_addition_of_a_host_array(cp, put):
    x = put(grid())
    x += grid()


@claim(Raises(TypeError))
def adding_a_string(cp, put):
    return put(grid()) + "x"


@claim(Raises(TypeError))
def in_place_result_of_a_wider_kind(cp, put):
    x = put(np.arange(3))
    x += 0.5


@claim(("float32", True))
def numpy_scalar_times_device_array(cp, put):
    y = np.float32(2) * put(grid())
    return str(y.dtype), isinstance(y, cp.ndarray)


# ------------------------------------------------------------------------- results of computing


@claim(("float32", "float64", "float32", "float16"))
def dtypes_of_sums(cp, put):
    x = put(grid())
    wide, half = x + np.float64(1), x.astype(np.float16) + 1.0
    return str((x + 1.0).dtype), str(wide.dtype), str((x * 2).dtype), str(half.dtype)


@claim(((), True, "int64", "float16", "int64"))
def reductions_are_0d_device_arrays(cp, put):
    x = put(grid())
    total = x.sum()
    whole = put(np.arange(3, dtype=np.int32)).sum()
    mean = x.astype(np.float16).mean()
    kinds = str(x.argmax().dtype), str(mean.dtype), str(whole.dtype)
    return (total.shape, isinstance(total, cp.ndarray), *kinds)


@claim((True, True, 2))
def predicates_are_0d_device_arrays(cp, put):
    x = put(grid())
    close, same = cp.allclose(x, x), cp.count_nonzero(x > 9)
    return isinstance(close, cp.ndarray), isinstance(same, cp.ndarray), int(same)


@claim((np.inf, True))
def division_by_zero_is_silent(cp, put):
    y = (put(grid()) / 0).get()
    return float(y[0, 1]), bool(np.isnan(y[0, 0]))


@claim(((16, 4), (16, 4), (4, 12)))
def layouts_of_results(cp, put):
    turned = put(grid().T.copy()).T  # (3, 4), Fortran order
    return (turned + turned).strides, turned.copy().strides, turned.astype(np.float32).strides


@claim(((4, 12), (16, 4)))
def layouts_of_like(cp, put):
    turned = put(grid().T.copy()).T
    return cp.zeros_like(turned).strides, cp.zeros_like(turned, order="C").strides


@claim((True, False, True))
def contiguity_of_indexed_copies(cp, put):
    x = put(grid())
    picked = x[:, put(np.array([0, 2]))]
    return picked.flags.c_contiguous, x[:, ::2].flags.c_contiguous, picked.flags.owndata


@claim([[2.0, 0.0], [1.0, 3.0]])
def add_at_accumulates_repeated_indices(cp, put):
    x = cp.zeros((2, 2), np.float32)
    rows, cols = put(np.array([0, 0, 1, 1])), put(np.array([0, 0, 0, 1]))
    cp.add.at(x, (rows, cols), put(np.array([1, 1, 1, 3], np.float32)))
    return x.get().tolist()


@claim(Raises(TypeError))
def subtract_at_needs_integers(cp, put):
    cp.subtract.at(cp.zeros(3, np.float32), put(np.array([0])), put(np.ones(1, np.float32)))


@claim([[0.0, 1.0, 2.0, 2.0]])
def a_mask_is_assigned_a_scalar(cp, put):
    x = put(grid()[:1])
    x[x > 2] = 2
    return x.get().tolist()


@claim(([2, 2], [1, 3]))
def nonzero_gives_device_indices(cp, put):
    rows, cols = cp.nonzero(put(grid()) % 2 * (put(grid()) > 8))
    return rows.get().tolist(), cols.get().tolist()


@claim((True, 512, True))
def memory_comes_in_blocks_of_512_bytes(cp, put):
    pool = cp.get_default_memory_pool()
    gc.collect()  # tracebacks of earlier claims may hold arrays
    before = pool.used_bytes()
    x = cp.zeros(3, np.float32)
    grown = pool.used_bytes() - before
    aligned = x.data.ptr % 512 == 0
    del x
    return aligned, grown, pool.used_bytes() == before


@claim((1536, True))
def a_pool_of_ones_own(cp, put):
    pool = cp.cuda.MemoryPool()
    with cp.cuda.using_allocator(pool.malloc):
        x = cp.zeros(257, np.float32)
        y = x[:2]
    used = pool.used_bytes()
    del x
    return used + 0 * y.size, pool.used_bytes() == used


MEETING = r"""
extern "C" __global__ void meeting(unsigned* count, float* y) {
    atomicAdd(count, 1u);
    while (atomicAdd(count, 0u) < gridDim.x) __nanosleep(20);
    y[blockIdx.x] = gridDim.x;
}
"""


# ----------------------------------------------------------------------------------- capture


def _captured(cp, work):
    """Run `work` in a capture; the graph, or the error after the capture was closed."""
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            work()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # an invalidated capture says so when closed
                stream.end_capture()
            raise
        graph = stream.end_capture()
    return graph, stream


@claim(Raises(NotImplementedError, "cuBLAS API during stream capture"))
def no_matmul_in_a_capture(cp, put):
    x = put(grid())
    _captured(cp, lambda: x @ x.T)


@claim(Raises(NotImplementedError, "cuBLAS API during stream capture"))
def no_tensordot_in_a_capture(cp, put):
    x = put(grid())
    _captured(cp, lambda: cp.tensordot(x, x.T, 1))  # the sum of all products needs no cuBLAS


@claim(Raises(NotImplementedError, "cuBLAS API during stream capture"))
def no_contraction_in_a_capture(cp, put):
    x = put(grid())
    _captured(cp, lambda: cp.einsum("ij,kj->ik", x, x))


@claim(CAPTURING)
def no_download_in_a_capture(cp, put):
    x = put(grid())
    _captured(cp, x.get)


@claim(CAPTURING)
def no_asynchronous_download_to_pageable_memory_in_a_capture(cp, put):
    x = put(grid())
    _captured(cp, lambda: x.get(blocking=False))


@claim(CAPTURING)
def no_nonzero_in_a_capture(cp, put):
    x = put(grid())
    _captured(cp, lambda: cp.nonzero(x))


@claim(CAPTURING)
def no_scalar_read_in_a_capture(cp, put):
    x = put(grid())
    _captured(cp, lambda: float(x.sum()))


@claim(CAPTURING)
def no_upload_in_a_capture(cp, put):
    _captured(cp, lambda: cp.asarray(grid()))


@claim(CAPTURING)
def no_mask_read_in_a_capture(cp, put):
    x = put(grid())
    _captured(cp, lambda: x[x > 2])


@claim(Raises(RuntimeError))
def no_synchronisation_in_a_capture(cp, put):
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            stream.synchronize()
        finally:
            stream.end_capture()


@claim(([1.0, 1.0], [3.0, 3.0], [5.0, 5.0]))
def a_graph_computes_when_launched(cp, put):
    x, w = put(np.ones(2, np.float32)), put(np.ones(2, np.float32))
    twice = cp.empty_like(x)  # a temporary's memory would go to others after the capture

    def step():
        cp.multiply(x, np.float32(2), out=twice)
        cp.add(w, twice, out=w)

    step()  # compiles the kernels
    w[...] = 1
    cp.cuda.Device().synchronize()
    graph, stream = _captured(cp, step)
    stream.synchronize()
    values = [w.get().tolist()]
    for _ in range(2):
        graph.launch(stream)
        stream.synchronize()
        values.append(w.get().tolist())
    return tuple(values)


@claim((False, True, False))
def capturing_is_visible(cp, put):
    stream = cp.cuda.Stream(non_blocking=True)
    states = [stream.is_capturing()]
    with stream:
        stream.begin_capture()
        states.append(stream.is_capturing())
        stream.end_capture()
    return (*states, stream.is_capturing())


# ----------------------------------------------------------------------------------- kernels


@claim(([0.0, 2.0, 4.0], "float64"))
def template_instances_by_name(cp, put):
    names = ["scale<float>", "scale<double>"]
    module = cp.RawModule(code=SCALE, name_expressions=names)
    x, y = put(np.arange(3.0)), cp.zeros(3)
    module.get_function("scale<double>")((1,), (32,), (x, y, np.float64(2), np.int32(3)))
    return y.get().tolist(), str(y.dtype)


@claim([2.0, 1.0, 0.0])
def dynamic_shared_memory(cp, put):
    kernel = cp.RawModule(code=SCALE, name_expressions=["scale<float>"]).get_function("reverse")
    x, y = put(np.arange(3, dtype=np.float32)), cp.zeros(3, np.float32)
    kernel((1,), (3,), (x, y), shared_mem=12)
    return y.get().tolist()


@claim(Raises(RuntimeError))
def a_kernel_that_is_not_there(cp, put):
    cp.RawModule(code=SCALE, name_expressions=["scale<float>"]).get_function("scales")


@claim(Raises(TypeError))
def a_host_array_as_a_kernel_argument(cp, put):
    kernel = cp.RawModule(code=SCALE, name_expressions=["scale<float>"]).get_function("reverse")
    kernel((1,), (3,), (np.arange(3, dtype=np.float32), cp.zeros(3, np.float32)))


@claim(Raises(TypeError))
def a_grid_that_is_no_tuple(cp, put):
    kernel = cp.RawModule(code=SCALE, name_expressions=["scale<float>"]).get_function("reverse")
    kernel(1, (3,), (cp.zeros(3, np.float32), cp.zeros(3, np.float32)))


@claim([3.0] * 3)
def blocks_that_wait_for_one_another(cp, put):
    kernel = cp.RawKernel(MEETING, "meeting", enable_cooperative_groups=True)
    count, y = cp.zeros(1, np.uint32), cp.zeros(3, np.float32)
    kernel((3,), (1,), (count, y))
    return y.get().tolist()


@claim(Raises(UserWarning, "The grid size will be reduced from 1048576 to"))
def more_such_blocks_than_the_device_has_room_for(cp, put):
    kernel = cp.RawKernel(MEETING, "meeting", enable_cooperative_groups=True)
    kernel((1 << 20,), (1,), (cp.zeros(1, np.uint32), cp.zeros(1 << 20, np.float32)))


@claim((True, 1, True, True))
def the_device_answers(cp, put):
    runtime = cp.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    at_least_one = min(runtime.getDeviceCount(), 1)
    version = runtime.driverGetVersion() >= 12000
    return cp.cuda.is_available(), at_least_one, version, properties["warpSize"] == 32


@claim((0, 0, True, 0))
def an_array_knows_its_device(cp, put):
    x = put(np.ones(2, np.float32))
    with cp.cuda.Device(0) as device:
        current = cp.cuda.get_device_id()
    return x.device.id, x.data.device_id, device == cp.cuda.Device(), current
