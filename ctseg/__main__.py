"""``python -m ctseg``."""

import sys

from ctseg.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
