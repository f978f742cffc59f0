"""``python -m discovery``: the service as a program of its own.

The process is discovery's alone, so gevent may patch it: redis-py then waits without holding others up. Nothing else in
EC262 is ever patched.
"""

from gevent import monkey

monkey.patch_all()

from discovery.service import main  # noqa: E402 - must come after the patch

if __name__ == "__main__":
    raise SystemExit(main())
