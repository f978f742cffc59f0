"""``python -m ec262.worker``: the same as ``ec262 worker``."""

from ec262.cli.worker import main

if __name__ == "__main__":
    raise SystemExit(main())
