"""Networks and arrays, to and from other libraries: ONNX, PyTorch's weights, DLPack.

Nothing here is needed to train; `import gpulayers` loads none of it. ONNX export needs the
package onnx (the extra ``onnx``), the others need nothing: PyTorch's weights come and go as plain
arrays.
"""

from gpulayers.interchange.dlpack import from_dlpack, to_dlpack
from gpulayers.interchange.onnx import OPSET, export_onnx, onnx_model
from gpulayers.interchange.torch import load_torch_state, torch_state

__all__ = [
    "OPSET",
    "export_onnx",
    "from_dlpack",
    "load_torch_state",
    "onnx_model",
    "to_dlpack",
    "torch_state",
]
