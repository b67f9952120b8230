"""``python -m gpulayers.ops.compiled``: build the C kernels in place."""

import json
import sys

from gpulayers.ops.compiled.build import BuildError, build

try:
    print(json.dumps(build(), indent=1))
except BuildError as error:
    sys.exit(f"not built: {error}")
