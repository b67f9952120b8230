"""Run notebooks from the first cell to the last, on NumPy; any exception is a failure.

python tools/run_notebooks.py examples/*.ipynb            # check, leave the files alone
python tools/run_notebooks.py --write examples/*.ipynb    # keep the new outputs
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def run(path: Path, write: bool) -> bool:
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        coalesce_streams=True,  # one output for what a cell prints, however it arrives in pieces
        resources={"metadata": {"path": path.parent}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        print(f"{path}: failed\n{error}")
        return False
    if write:
        for cell in notebook.cells:  # times of execution would change with every run
            cell.metadata.pop("execution", None)
        notebook.metadata.pop("language_info", None)
        nbformat.write(notebook, path)
    print(f"{path}: ran {len(notebook.cells)} cells in {time.perf_counter() - start:.1f} s")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="keep the new outputs")
    arguments = parser.parse_args()
    os.environ["GPULAYERS_BACKEND"] = "numpy"
    results = [run(path, arguments.write) for path in arguments.notebooks]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
