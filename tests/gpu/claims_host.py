"""Claims that need no device memory: refusals, views, layouts, signatures."""

from __future__ import annotations

import copy
import inspect

import numpy as np

from tests.gpu.claims import Raises, claim, grid

IMPLICIT = Raises(TypeError, "Implicit conversion to a NumPy array is not allowed")
NOT_A_DEVICE_ARRAY = Raises(TypeError, "has incorrect type (expected cupy._core.core._ndarray_base")
host = {"host_only": True}


# --------------------------------------------------------------------- host arrays are refused


@claim(IMPLICIT, **host)
def asarray_of_a_device_array(cp, put):
    return np.asarray(put(grid()))


@claim(IMPLICIT, **host)
def a_list_of_device_arrays_to_numpy(cp, put):
    return np.array([put(grid())])


@claim(IMPLICIT, **host)
def a_host_array_indexed_by_a_device_array(cp, put):
    return np.zeros(3)[put(np.zeros(2, np.int64))]


@claim(IMPLICIT, **host)
def assigning_a_device_array_into_a_host_array(cp, put):
    grid()[...] = put(grid())


@claim(NOT_A_DEVICE_ARRAY, **host)
def matmul_with_a_host_array(cp, put):
    return cp.matmul(put(grid()), grid().T)


@claim(NOT_A_DEVICE_ARRAY, **host)
def matmul_operator_with_a_host_array(cp, put):
    return put(grid()) @ grid().T


@claim(NOT_A_DEVICE_ARRAY, **host)
def host_array_matmul_device_array(cp, put):
    return grid() @ put(grid().T.copy())


@claim(NOT_A_DEVICE_ARRAY, **host)
def dot_with_a_host_array(cp, put):
    return cp.dot(put(grid()), grid().T)


@claim(NOT_A_DEVICE_ARRAY, **host)
def tensordot_with_a_host_array(cp, put):
    return cp.tensordot(put(grid()), grid())


@claim(Raises(ValueError, "non-scalar numpy.ndarray cannot be used for fill"), **host)
def assigning_a_host_array(cp, put):
    put(grid())[...] = grid()


@claim(Raises(ValueError, "non-scalar numpy.ndarray cannot be used for fill"), **host)
def assigning_a_list(cp, put):
    put(grid())[0] = [1, 2, 3, 4]


@claim(Raises(ValueError, "non-scalar numpy.ndarray cannot be used for fill"), **host)
def filling_with_a_host_array(cp, put):
    put(grid()).fill(grid())


@claim(Raises(ValueError, "non-scalar numpy.ndarray cannot be used for copyto"), **host)
def copyto_from_a_host_array(cp, put):
    cp.copyto(put(grid()), grid())


@claim(Raises(TypeError, "Only numpy.ndarray can be set to cupy.ndarray"), **host)
def set_takes_host_arrays_only(cp, put):
    put(grid()).set([1.0])


@claim(Raises(TypeError, "float64 array cannot be set to float32 array"), **host)
def set_checks_the_dtype(cp, put):
    put(grid()).set(grid().astype(np.float64))


@claim(Raises(ValueError, "Shape mismatch"), **host)
def set_checks_the_shape(cp, put):
    put(grid()).set(grid()[0].copy())


# --------------------------------------------------------------------------- names and arguments


@claim((False, False, False, False, False), **host)
def names_that_numpy_has_and_cupy_does_not(cp, put):
    return tuple(hasattr(cp, n) for n in ("block", "errstate", "insert", "einsum_path", "vecdot"))


@claim(Raises(AttributeError, "has no attribute 'block'"), **host)
def message_of_a_missing_name(cp, put):
    return cp.block


@claim(Raises(TypeError, "unexpected keyword argument 'where'"), **host)
def sum_has_no_where(cp, put):
    return cp.sum(put(grid()), where=True)


@claim(Raises(TypeError, "unexpected keyword argument 'initial'"), **host)
def max_has_no_initial(cp, put):
    return cp.max(put(grid()), initial=0)


@claim(Raises(TypeError, "unexpected keyword argument 'initial'"), **host)
def the_method_max_has_no_initial(cp, put):
    return put(grid()).max(initial=0)


@claim(Raises(TypeError, "Wrong arguments {'where': 1}"), **host)
def ufuncs_have_no_where(cp, put):
    return cp.maximum(put(grid()), 0, where=1)


@claim(Raises(TypeError, "It must be either 2 or 3 (with outputs), but given 1"), **host)
def ufuncs_count_their_arguments(cp, put):
    return cp.maximum(put(grid()))


@claim(Raises(NotImplementedError, "`cupy_maximum.reduce` is not supported yet"), **host)
def maximum_has_no_reduce(cp, put):
    return cp.maximum.reduce(put(grid()))


@claim(Raises(NotImplementedError, "`cupy_maximum.accumulate` is not supported yet"), **host)
def maximum_has_no_accumulate(cp, put):
    return cp.maximum.accumulate(put(grid()))


@claim(Raises(NotImplementedError, "`cupy_multiply.at` is not supported yet"), **host)
def multiply_has_no_at(cp, put):
    cp.multiply.at(put(grid()), 0, 1.0)


@claim(Raises(TypeError), **host)
def item_takes_no_argument(cp, put):
    return put(grid()).item(0)


@claim(Raises(ValueError, "can only convert an array of size 1 to a Python scalar"), **host)
def item_of_several_elements(cp, put):
    return put(grid()).item()


@claim(Raises(ValueError, "The truth value of an array with more than one element"), **host)
def truth_of_several_elements(cp, put):
    return bool(put(grid()))


@claim(Raises(TypeError, "unhashable"), **host)
def arrays_are_unhashable(cp, put):
    return hash(put(grid()))


@claim((False, False, False), **host)
def members_an_array_lacks(cp, put):
    x = put(grid())
    return tuple(hasattr(x, n) for n in ("__index__", "__imatmul__", "__contains__"))


@claim(Raises(AttributeError), **host)
def arrays_take_no_new_attributes(cp, put):
    put(grid()).note = 1


@claim(Raises(ValueError, "Unsupported dtype object"), **host)
def no_object_arrays(cp, put):
    return cp.empty((2, 2), "O")


@claim(Raises(ValueError, "Unsupported dtype |S4"), **host)
def no_string_arrays(cp, put):
    return put(grid()).astype("S4")


@claim(Raises(ValueError, "cannot reshape array of size 12 into shape (5,)"), **host)
def impossible_reshape(cp, put):
    return put(grid()).reshape(5)


@claim(Raises(IndexError), **host)
def index_out_of_range(cp, put):
    return put(grid())[5]


@claim(Raises(IndexError, "too many indices for array"), **host)
def too_many_indices(cp, put):
    return put(grid())[0, 0, 0]


@claim(Raises(TypeError, "len() of unsized object"), **host)
def length_of_a_0d_array(cp, put):
    return len(put(grid())[0, 0])


@claim((True, True, True, True), **host)
def types_are_numpys(cp, put):
    return cp.float32 is np.float32, cp.dtype is np.dtype, cp.newaxis is None, cp.pi == np.pi


@claim("(self, axis, dtype, out, keepdims)", **host)
def parameters_of_sum(cp, put):
    names = inspect.signature(cp.sum).parameters
    return f"(self, {', '.join(list(names)[1:])})"


# ------------------------------------------------------------------------------ views and layouts


@claim(((), 0, True), **host)
def a_single_element_is_a_0d_view(cp, put):
    x = put(grid())
    return x[1, 2].shape, x[1, 2].ndim, x[1, 2].base is x


@claim((True, True, True, True), **host)
def base_is_the_first_owner(cp, put):
    x = put(grid())
    return (x.T.T.base is x, x[0][1:].base is x, x.reshape(-1).base is x, x.base is None)


@claim((True, True, True))
def what_returns_the_array_itself(cp, put):
    x = put(grid())
    same_type = x.astype(np.float32, copy=False) is x
    return cp.asarray(x) is x, cp.ascontiguousarray(x) is x, same_type


@claim(((4, 16), (0, 16, 4), (1, 1, 4), (4, 3)), **host)
def strides_and_shapes_of_views(cp, put):
    x = put(grid())
    turned, wide = x.transpose(1, 0), cp.broadcast_to(x, (2, 3, 4))
    return turned.strides, wide.strides, x[0:1, None].shape, cp.swapaxes(x, 0, 1).shape


@claim((True, False, False, False), **host)
def flags_of_a_transposed_view(cp, put):
    flags = put(grid()).T.flags
    return flags.f_contiguous, flags.c_contiguous, flags["OWNDATA"], hasattr(flags, "writeable")


@claim(((2, 2, 2, 3), (16, 4, 16, 4)))
def sliding_windows_are_views(cp, put):
    windows = cp.lib.stride_tricks.sliding_window_view(put(grid()), (2, 3))
    return windows.shape, windows.strides


@claim(Raises(ValueError, "last axis must be contiguous"), **host)
def view_of_a_transposed_array_as_a_wider_type(cp, put):
    return put(grid()).T.view(np.float64)


@claim((("float32", "int32"), "float32", "float64"), **host)
def dtypes_follow_nep_50(cp, put):
    x = put(grid())
    views = (str(x.dtype), str(x.view(np.int32).dtype))
    return (views, str(cp.result_type(x, 1.0)), str(cp.result_type(x, np.float64(1))))


@claim((True, True, False), **host)
def modules_of_arrays(cp, put):
    x = put(grid())
    return (
        cp.get_array_module(x) is cp,
        cp.get_array_module(grid()) is np,
        cp.get_array_module(grid(), x) is np,
    )


@claim(("cupy", "ndarray", 100), **host)
def the_array_type(cp, put):
    kind = type(put(grid()))
    return kind.__module__, kind.__name__, kind.__array_priority__


@claim(((3, 4), 2, 12), **host)
def metadata_through_numpy(cp, put):
    x = put(grid())
    return np.shape(x), np.ndim(x), cp.size(x)


@claim([(4,), (4,), (4,)], **host)
def iteration_gives_views(cp, put):
    return [row.shape for row in put(grid())]


# --------------------------------------------------------------------------- kernels and streams


@claim(Raises(TypeError, "Exactly one of `code` and `path`"), **host)
def raw_module_needs_a_source(cp, put):
    return cp.RawModule()


@claim(
    Raises(TypeError, "Argument 'options' has incorrect type (expected tuple, got list)"), **host
)
def raw_module_options_are_a_tuple(cp, put):
    return cp.RawModule(code="x", options=["-DX"])


@claim(("f<float>",), **host)
def raw_module_keeps_its_name_expressions(cp, put):
    return cp.RawModule(code="x", name_expressions=["f<float>"]).name_expressions


@claim(Raises(RuntimeError, "cannot capture on the default (legacy) stream"), **host)
def the_null_stream_cannot_be_captured(cp, put):
    cp.cuda.Stream.null.begin_capture()


@claim(Raises(NotImplementedError, "must be created via stream capture"), **host)
def graphs_come_from_captures_only(cp, put):
    return cp.cuda.Graph()


@claim((True, True), **host)
def error_types(cp, put):
    out_of_memory = cp.cuda.memory.OutOfMemoryError
    runtime_error = cp.cuda.runtime.CUDARuntimeError
    return issubclass(out_of_memory, MemoryError), issubclass(runtime_error, RuntimeError)


@claim(35, **host)
def runtime_errors_carry_their_status(cp, put):
    return cp.cuda.runtime.CUDARuntimeError(35).status


@claim(True, **host)
def asnumpy_passes_host_arrays_through(cp, put):
    x = grid()
    return cp.asnumpy(x) is x or bool((cp.asnumpy(x) == x).all())


@claim((4, 4), **host)
def copies_of_metadata_do_not_touch_the_device(cp, put):
    x = put(grid())
    shape = copy.deepcopy(x.shape)
    return shape[1], len(x.T)
