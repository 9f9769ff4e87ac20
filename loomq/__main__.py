"""The program, as ``python -m loomq``."""

from __future__ import annotations

from loomq.cli.main import main

if __name__ == "__main__":
    main()
