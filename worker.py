"""Lends this machine: ``python worker.py [-v|-V] [-P 11235] [--discovery URL]``."""

from ec262.cli.worker import main

if __name__ == "__main__":
    raise SystemExit(main())
