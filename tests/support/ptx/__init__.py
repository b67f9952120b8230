"""An interpreter of the PTX that NVRTC makes of the kernels, on NumPy arrays.

`tests.support.cuda_on_cpu` runs the CUDA sources as g++ understands them, with C++ in place of
inline PTX. Here what NVRTC has made of them runs: its loads of several numbers, its address
arithmetic, and the inline PTX as it stands in the sources. It is written from the PTX ISA and
shares nothing with the other one. What PTX leaves undefined is an error that names the instruction
and its line in the source; so is an instruction that is not interpreted.

Not seen here: what ptxas makes of PTX, races between blocks, and the order in which a device adds
up what mma sums.
"""

from tests.support.ptx.machine import PtxError
from tests.support.ptx.program import Kernel, Module, compile_ptx, load

__all__ = ["Kernel", "Module", "PtxError", "compile_ptx", "load"]
