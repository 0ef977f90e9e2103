"""`python -m lit_opt` is the command `lit-opt`."""

from __future__ import annotations

import sys

from lit_opt.cli import main

if __name__ == "__main__":
    sys.exit(main())
