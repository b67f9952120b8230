"""Packaging hook: compiles the C kernels when a compiler is there, and goes on without when not.

``GPULAYERS_BUILD_KERNELS=0`` leaves them out (a wheel of Python files for every platform); ``=1``
makes a failure an error.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("gpulayers/ops/compiled")
VARIABLE = "GPULAYERS_BUILD_KERNELS"


def load_builder(root: Path) -> Any:
    """Import build.py by its path: the package itself needs NumPy, which is not there yet."""
    spec = importlib.util.spec_from_file_location("build", root / FOLDER / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class KernelsHook(BuildHookInterface):
    """Called by hatchling for wheels and editable installs.

    An editable install gets the library inside the source tree, where it is imported from; a wheel
    gets one built aside, so that making a wheel leaves the tree as it is. What was built there from
    the same sources by the same compiler is taken as it is.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        builder = load_builder(Path(self.root))
        wanted = os.environ.get(VARIABLE, "")
        editable = version == "editable"
        target = builder.LIBRARIES if editable else Path(tempfile.mkdtemp()) / "lib"
        try:
            if wanted == "0":
                raise builder.BuildError(f"{VARIABLE}=0 when gpulayers was installed")
            if not builder.is_current(builder.LIBRARIES):
                builder.build(target)
            elif not editable:
                shutil.copytree(builder.LIBRARIES, target)
        except builder.BuildError as error:
            if wanted == "1":
                raise
            builder.record_failure(str(error), target)
        else:
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"  # no Python API: one file for all versions
        if not editable:
            self._aside = target.parent
            for file in target.iterdir():
                build_data["force_include"][str(file)] = f"{FOLDER.as_posix()}/lib/{file.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            shutil.rmtree(self._aside, ignore_errors=True)
