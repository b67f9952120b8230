"""CUDA sources to machine code, in a process of its own: NVRTC does one at a time in each.

Run as a file, ``python tune_worker.py``, with a JSON document on standard input: ``library`` (the
path of NVRTC) and ``jobs``. It needs the standard library alone, so that it starts at once. Each
job gives a line of JSON: ``cubin`` (base64) and ``symbol``, or ``error``.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["Nvrtc", "main"]


class Nvrtc:
    """The part of the NVRTC library that is needed here.

    Source: NVRTC documentation, "User Interface".

    Raises
    ------
    OSError
        If `path` is no library.
    """

    def __init__(self, path: str) -> None:
        # The wheels of NVRTC 13.0 do not say that its second library lies beside the first, which
        # then does not find it unless it is there already.
        for beside in sorted(Path(path).parent.glob("libnvrtc-builtins.so*")):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(beside))
        self._library = ctypes.CDLL(path)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            text = self._library.nvrtcGetErrorString(status)
            raise RuntimeError(f"{function}: {text.decode()}")

    def version(self) -> tuple[int, int]:
        """Major and minor."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def compile(
        self, code: str, file: str, expression: str, options: list[str]
    ) -> tuple[bytes, str]:
        """Return (machine code, the kernel's name in it).

        Parameters
        ----------
        code, file : str
            The source, and its name for messages.
        expression : str
            The instance of a template, ``"gemm<float, float, Wide>"``.
        options : list of str
            With ``-arch=sm_..``.

        Raises
        ------
        RuntimeError
            With the compiler's log.
        """
        program = ctypes.c_void_p()
        source, name = code.encode(), expression.encode()
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), source, file.encode(), 0, None, None
        )
        try:
            self._call("nvrtcAddNameExpression", program, name)
            texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if self._library.nvrtcCompileProgram(program, len(options), texts):
                raise RuntimeError(
                    self._buffer(program, "nvrtcGetProgramLog").decode("utf-8", "replace")
                )
            lowered = ctypes.c_char_p()
            self._call("nvrtcGetLoweredName", program, name, ctypes.byref(lowered))
            symbol = (lowered.value or b"").decode()
            return self._buffer(program, "nvrtcGetCUBIN"), symbol
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _buffer(self, program: ctypes.c_void_p, function: str) -> bytes:
        """What ``function`` gives, whose size ``functionSize`` tells."""
        size = ctypes.c_size_t()
        self._call(f"{function}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(function, program, buffer)
        return buffer.raw if function == "nvrtcGetCUBIN" else buffer.value


def main() -> int:
    """Work off standard input."""
    document = json.load(sys.stdin)
    nvrtc = Nvrtc(document["library"])
    for job in document["jobs"]:
        try:
            cubin, symbol = nvrtc.compile(
                job["code"], job["file"], job["expression"], job["options"]
            )
            answer = {"cubin": base64.b64encode(cubin).decode(), "symbol": symbol}
        except RuntimeError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
