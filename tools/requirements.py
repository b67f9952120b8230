"""Print what an extra of pyproject.toml stands for, one requirement a line, without the project.

python tools/requirements.py dev > requirements.txt    # then: pip install -r requirements.txt
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements(extra: str, project: dict[str, object]) -> list[str]:
    """The dependencies of the project and of `extra`, with extras that name extras resolved."""
    name, extras = project["name"], project["optional-dependencies"]
    found, waiting = list(project["dependencies"]), [extra]
    for extra in waiting:
        for requirement in extras[extra]:
            own = re.fullmatch(rf"{name}\[(.+)\]", requirement)
            if own:
                waiting += own[1].split(",")
            else:
                found.append(requirement)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1], tomllib.loads(PROJECT.read_text())["project"])))
