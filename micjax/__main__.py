"""`python -m micjax`, and the command `micjax`."""

import sys

from micjax.run.cli import main as main

if __name__ == "__main__":
    sys.exit(main())
