"""`python -m fastnorm`: the command line. All of it lives in `fastnorm.cli`; this file only hands over the exit
status."""

import sys

from fastnorm.cli import main

if __name__ == "__main__":
    sys.exit(main())
