"""``python -m gpulayers.ops.compiled``: build the C kernels in place."""

import json
import sys

from gpulayers.ops.compiled.build import BuildError, build


def main() -> None:
    """Build, and print the record or why it failed."""
    try:
        print(json.dumps(build(), indent=1))
    except BuildError as error:
        sys.exit(f"not built: {error}")


if __name__ == "__main__":
    main()
