"""Relaying: how a foreman's request and a worker's answer travel through discovery's relay. No I/O.

The relay carries small calls, each with one small reply, and does not look into them. A larger request goes as several
calls: all parts but the last are put aside by the worker, the last one has the request served. Of a larger answer the
foreman calls for the parts that did not fit into the first reply. So neither discovery nor its store ever holds more
of a transfer than a few parts, and what a broken line took is repeated part by part.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ec262.errors import Malformed
from ec262.protocol.messages import Id, Message

PART_BYTES = 1024 * 1024
"""Most bytes of a body in one call or reply."""
CALL_BYTES = PART_BYTES + 16 * 1024
"""Most bytes of a call or a reply: a part and what is said beside it."""
_PART_COSTS = 1024
"""Bytes that a part costs beside its body, so that many empty ones are not for nothing."""
MOST_PARTS = 96
"""No request or answer between foremen and workers is larger (`ec262.foreman.peers.MAX_ANSWER_BYTES`)."""

Line = Annotated[str, Meta(max_length=2048, pattern=r"^[\x20-\x7e]*$(?!\n)")]


class RelayedRequest(Message, frozen=True, kw_only=True):
    """A part of a request of a foreman to a worker.

    ``keep``: a part that is not the last; ``serve``: the last, have the request served; ``more``: the next part of an
    answer, `part` says which; ``over``: the foreman has all of it. Parts are counted from 0. `agent`: the foreman's
    ``User-Agent``, so that one that is too old is told so here as well.
    """

    transfer: Id
    what: Literal["keep", "serve", "more", "over"] = "serve"
    part: Annotated[int, Meta(ge=0, lt=MOST_PARTS)] = 0
    method: Literal["GET", "POST", "DELETE"] = "GET"
    target: Line = "/"
    authorization: Line = ""
    media: Line = ""
    accept: Line = ""
    agent: Line = ""
    body: Annotated[bytes, Meta(max_length=PART_BYTES)] = b""


class RelayedAnswer(Message, frozen=True, kw_only=True):
    """A worker's answer, or what fits of it; `size` is that of the whole body.

    Status 0: the part was put aside. Status -1: parts are missing here, the request is to be sent anew.
    """

    status: int
    media: Line = ""
    size: int = 0
    body: Annotated[bytes, Meta(max_length=PART_BYTES)] = b""


KEPT = 0
MISSING = -1

_packer = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(RelayedRequest)
_answers = msgspec.msgpack.Decoder(RelayedAnswer)


def pack(message: RelayedRequest | RelayedAnswer) -> bytes:
    """The bytes that the relay carries."""
    return _packer.encode(message)


def unpack_request(call: bytes) -> RelayedRequest:
    """The request in a call.

    Raises:
        Malformed: it is none.
    """
    try:
        return _requests.decode(call)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        raise Malformed(f"not a relayed request: {reason}") from None


def unpack_answer(reply: bytes) -> RelayedAnswer:
    """The answer in a reply.

    Raises:
        Malformed: it is none.
    """
    try:
        return _answers.decode(reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        raise Malformed(f"not a relayed answer: {reason}") from None


def parts_of(size: int) -> int:
    """How many parts a body of `size` bytes has; an empty one has one."""
    return max(1, -(-size // PART_BYTES))


def part_of(body: bytes, number: int) -> bytes:
    """Part `number` of a body."""
    return body[number * PART_BYTES : (number + 1) * PART_BYTES]


class _Coming:
    __slots__ = ("parts", "sender", "size", "touched_s")

    def __init__(self, sender: str) -> None:
        self.sender = sender
        self.parts: dict[int, bytes] = {}
        self.size = 0
        self.touched_s = 0.0


class Transfers:
    """Parts that a worker keeps: of requests that are not whole yet, and of answers that are not fetched yet.

    Args:
        most_bytes: of all parts kept; a sender has half of that at most.
        idle_s: parts of which nothing was heard for so long are dropped.
    """

    def __init__(self, most_bytes: int, idle_s: float = 90.0) -> None:
        self._most_bytes = most_bytes
        self._idle_s = idle_s
        self._coming: OrderedDict[tuple[str, str], _Coming] = OrderedDict()
        self._by_sender: dict[str, int] = {}
        self._going: OrderedDict[tuple[str, str], tuple[bytes, float]] = OrderedDict()
        self.bytes = 0

    def keep(self, sender: str, request: RelayedRequest, now_s: float) -> bool:
        """Puts a part of a request aside; False: there is no room. A part that came before is taken as such."""
        self._sweep(now_s)
        key = (sender, request.transfer)
        coming = self._coming.get(key)
        if coming is not None and request.part in coming.parts:
            return True
        size = len(request.body) + _PART_COSTS
        if not self._room(sender, size):
            return False
        if coming is None:
            coming = self._coming[key] = _Coming(sender)
        coming.parts[request.part] = request.body
        coming.size += size
        coming.touched_s = now_s
        self._coming.move_to_end(key)
        self._count(sender, size)
        return True

    def whole(self, sender: str, request: RelayedRequest) -> bytes | None:
        """The body of a request whose last part came; None: parts are missing. They are kept no longer."""
        if request.part == 0:
            return request.body
        coming = self._coming.pop((sender, request.transfer), None)
        if coming is None:
            return None
        self._count(sender, -coming.size)
        if set(coming.parts) != set(range(request.part)):
            return None
        return b"".join([*(coming.parts[number] for number in range(request.part)), request.body])

    def answer(self, sender: str, transfer: str, answer: RelayedAnswer, body: bytes, now_s: float) -> RelayedAnswer:
        """The first reply of an answer with that body; what does not fit is kept to be called for.

        An answer is kept whatever room there is: it is made already, and no request is taken while there is none.
        """
        self._sweep(now_s)
        if len(body) > PART_BYTES:
            self._going[sender, transfer] = (body, now_s)
            self.bytes += len(body)
        return msgspec.structs.replace(answer, size=len(body), body=part_of(body, 0))

    def more(self, sender: str, request: RelayedRequest, now_s: float) -> RelayedAnswer:
        """The reply to a call for a part of an answer. The answer is dropped some time after the last such call."""
        self._sweep(now_s)
        kept = self._going.get((sender, request.transfer))
        if kept is None or request.part >= parts_of(len(kept[0])):
            return RelayedAnswer(status=MISSING)
        self._going[sender, request.transfer] = (kept[0], now_s)
        self._going.move_to_end((sender, request.transfer))
        return RelayedAnswer(status=KEPT, size=len(kept[0]), body=part_of(kept[0], request.part))

    def over(self, sender: str, transfer: str) -> None:
        """The foreman has the whole answer."""
        kept = self._going.pop((sender, transfer), None)
        if kept is not None:
            self.bytes -= len(kept[0])

    def _room(self, sender: str, size: int) -> bool:
        mine = self._by_sender.get(sender, 0)
        return self.bytes + size <= self._most_bytes and mine + size <= self._most_bytes // 2

    def _count(self, sender: str, size: int) -> None:
        self.bytes += size
        left = self._by_sender.get(sender, 0) + size
        if left:
            self._by_sender[sender] = left
        else:
            self._by_sender.pop(sender, None)

    def _sweep(self, now_s: float) -> None:
        oldest_s = now_s - self._idle_s
        while self._coming and next(iter(self._coming.values())).touched_s < oldest_s:
            dropped = self._coming.popitem(last=False)[1]
            self._count(dropped.sender, -dropped.size)
        while self._going and next(iter(self._going.values()))[1] < oldest_s:
            self.bytes -= len(self._going.popitem(last=False)[1][0])


# --- the challenge ---


def challenge(boot_id: str, nonce: str, why: str) -> str:
    """What discovery shows a worker that it connects to: that it knows its boot id, which nobody else does."""
    return hmac.digest(boot_id.encode(), f"ec262/v1/challenge {why} {nonce}".encode(), "sha256").hex()


def proof(boot_id: str, nonce: str) -> str:
    """What a worker answers: it is the one that registered with this boot id."""
    return hmac.digest(boot_id.encode(), f"ec262/v1/proof {nonce}".encode(), "sha256").hex()
