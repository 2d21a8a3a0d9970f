"""``python -m ctseg``.

Python puts the current folder before everything else that modules are looked for in. Where ctseg itself does not lie
there, that is taken back before anything is imported that could be found in it.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not sys.flags.isolated and sys.path[0] == str(Path.cwd()) != str(Path(__file__).parents[1]):
        del sys.path[0]
    from ctseg.cli.main import main

    sys.exit(main())
