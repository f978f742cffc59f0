"""How a foreman proves to a worker that a job's results are its own, on a connection without TLS.

Header ``Authorization: EC262-Poll sequence=N, mac=HEX`` where the MAC is HMAC-SHA-256 under the job's poll key over
method, path with query, and N. N has to grow from request to request: what somebody overheard cannot be sent again.
"""

from __future__ import annotations

import hmac
import re

from ec262.errors import Malformed

_FORM = re.compile(r"EC262-Poll sequence=([0-9]{1,18}), mac=([0-9a-f]{64})")


def poll_authorization(poll_key: bytes, *, method: str, target: str, sequence: int) -> str:
    """The header's value.

    Args:
        target: path and query exactly as sent.
        sequence: larger than in every earlier request for this job to this worker.
    """
    return f"EC262-Poll sequence={sequence}, mac={_mac(poll_key, method, target, sequence)}"


def check_poll_authorization(value: str, poll_key: bytes, *, method: str, target: str) -> int:
    """The request's sequence number, when its MAC is right; the caller compares it with the last.

    Raises:
        Malformed: no such header, or a wrong MAC.
    """
    form = _FORM.fullmatch(value)
    if form is None:
        raise Malformed("the Authorization header has to be: EC262-Poll sequence=N, mac=HEX")
    sequence = int(form[1])
    if not hmac.compare_digest(form[2], _mac(poll_key, method, target, sequence)):
        raise Malformed("the request was not made with this job's poll key")
    return sequence


def _mac(poll_key: bytes, method: str, target: str, sequence: int) -> str:
    message = f"{method} {target} {sequence}".encode("utf-8", "surrogatepass")
    return hmac.digest(poll_key, message, "sha256").hex()
