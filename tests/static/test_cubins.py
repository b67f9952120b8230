"""Kernels compiled side by side in processes of their own, by the real compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpulayers.cuda import cubins, table
from gpulayers.cuda.compile import load_source
from gpulayers.cuda.cubins import Job, Store
from tests.support import nvrtc

pytestmark = [pytest.mark.static, pytest.mark.usefixtures("compiler")]


def job(name: str, dtype: str, expression: str = "") -> Job:
    spec = table.KERNELS[name]
    return Job(
        *(load_source(spec.file), spec.file, expression or spec.expression(dtype, "int32")),
        *((*table.options(dtype), *nvrtc.CUPY_OPTIONS), "sm_90", nvrtc.nvrtc_version()),
    )


def test_machine_code_of_each_kernel_and_the_log_of_a_bad_one(tmp_path: Path) -> None:
    library = cubins.nvrtc_path()
    assert library is not None
    assert ".".join(map(str, cubins.tune_worker.Nvrtc(library).version())) == nvrtc.nvrtc_version()
    store = Store(tmp_path)
    good = [job("sum_parts", "float32"), job("sum_parts", "float16")]
    bad = job("sum_parts", "float32", "no_such_kernel<3>")
    (failed,) = cubins.compile_all([bad, *good], store, processes=2)
    assert failed.startswith("no_such_kernel<3>: ")
    assert 'identifier "no_such_kernel" is undefined' in failed
    for one in good:
        found = store.find(one)
        assert found is not None
        content = found.path.read_bytes()
        assert content.startswith(b"\x7fELF")
        assert found.symbol.encode() in content
        assert "sum_parts" in found.symbol
    assert store.find(bad) is None


@pytest.mark.skipif(sys.platform != "linux", reason="wheels of other systems find it")
def test_the_library_beside_nvrtc_is_there_before_it_is_looked_for() -> None:
    """NVRTC 13.0's wheel does not find it by itself."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tune_worker; "
        "tune_worker.Nvrtc(sys.argv[2]); print(open('/proc/self/maps').read())"
    )
    folder = str(Path(cubins.tune_worker.__file__).parent)
    command = [sys.executable, "-c", code, folder, str(cubins.nvrtc_path())]
    maps = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "libnvrtc-builtins.so" in maps
