"""``python -m gpulayers`` is the command ``gpulayers``."""

import sys

from gpulayers.cli import main

if __name__ == "__main__":
    sys.exit(main())
