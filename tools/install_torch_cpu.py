"""Install PyTorch as a referee for the tests, where that takes no CUDA packages.

pip is asked what it would install; a build that drags in CUDA libraries (several GB) is declined.
Exits 0 either way and says what it did: the tests that compare with PyTorch skip without it.
"""

import json
import subprocess
import sys

# the newest release first; then one that package mirrors often carry as a CPU build
CANDIDATES = ("torch", "torch==2.13.0")


def would_install(requirement: str) -> list[str] | None:
    """The names of the packages pip would install, or None if it finds no solution."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-"]
    done = subprocess.run([*command, requirement], capture_output=True, text=True)
    if done.returncode:
        return None
    return [item["metadata"]["name"].lower() for item in json.loads(done.stdout)["install"]]


def main() -> int:
    for requirement in CANDIDATES:
        names = would_install(requirement)
        if names is None or any(name.startswith(("nvidia-", "cuda-", "triton")) for name in names):
            continue
        command = [sys.executable, "-m", "pip", "install", "--quiet", requirement]
        if subprocess.run(command).returncode == 0:
            print(f"installed {requirement} (CPU build): the tests compare with PyTorch")
            return 0
    print("no CPU build of PyTorch for this platform: the tests that compare with it will skip")
    return 0


if __name__ == "__main__":
    sys.exit(main())
