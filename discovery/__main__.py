"""``python -m discovery``: the service as a program of its own.

The process is discovery's alone, so gevent may patch it: redis-py then waits without holding others up. Nothing else in
EC262 is ever patched.
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402 - must come after the patch, as all below

from discovery import backup, service  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(backup.main(sys.argv[1:]) if sys.argv[1:2] in (["backup"], ["restore"]) else service.main())
