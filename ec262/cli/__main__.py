"""``python -m ec262.cli``: the same as ``ec262``."""

from ec262.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
