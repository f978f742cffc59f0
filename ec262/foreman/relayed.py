"""Relayed: requests to a worker through discovery's relay. What a request is, is told in `ec262.protocol.relaying`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence

import gevent

from ec262 import __version__
from ec262.discovery_client import DiscoveryClient
from ec262.errors import DiscoveryUnreachable, Malformed, NetworkError, ProblemError
from ec262.foreman.direct import MAX_ANSWER_BYTES, PeerUnreachable
from ec262.protocol import messages as m
from ec262.protocol.relaying import (
    KEPT,
    MISSING,
    RelayedAnswer,
    RelayedRequest,
    pack,
    part_of,
    parts_of,
    unpack_answer,
)
from ec262.protocol.versions import user_agent

PATIENCE_S = 30.0
"""How long a worker may be out of the relay's sight, beyond the time that it holds the request."""
BUSY_FOR_S = 30.0
"""How long a call is repeated that found no room."""
PAUSE_S = 1.0
PARTS_AT_ONCE = 4
CALLS_AT_ONCE = 64
LONGEST_CALL_S = 60.0
_BUSY = frozenset({503, 429})
_NOT_DELIVERED = frozenset({"absent", "unknown-worker", "relay-refused", "unauthorized", "banned"})


class RelayDown(PeerUnreachable):
    """Discovery itself does not answer; the worker may be well."""


class Relay:
    """The relay as one job uses it: connections of its own, for calls wait long and others must not wait for them."""

    def __init__(self, discovery: DiscoveryClient) -> None:
        self._discovery = discovery
        self._client: DiscoveryClient | None = None

    def call(self, worker_id: str, call: m.CallRelay) -> m.RelayReply:
        """One call. Raises as `DiscoveryClient.call_relay`."""
        if self._client is None:
            self._client = self._discovery.sibling(concurrency=CALLS_AT_ONCE, answer_timeout_s=LONGEST_CALL_S + 5.0)
        return self._client.call_relay(worker_id, call)

    def close(self) -> None:
        """Closes its connections."""
        if self._client is not None:
            self._client.close()


class Relayed:
    """The way to a worker through the relay.

    Attributes:
        relay_pass: the last that discovery gave for this worker.
    """

    def __init__(self, relay: Relay, worker_id: str, relay_pass: bytes) -> None:
        self._relay = relay
        self._worker_id = worker_id
        self.relay_pass = relay_pass

    def exchange(
        self, method: str, target: str, body: bytes, headers: Mapping[str, str], wait_s: float
    ) -> tuple[int, str, bytes]:
        """See `Way`.

        Raises:
            RelayDown: discovery does not answer.
            ProblemError: 503: the relay or the worker has had no room for a while.
        """
        transfer = secrets.token_hex(16)
        last = parts_of(len(body)) - 1
        kept = [
            RelayedRequest(transfer=transfer, what="keep", part=number, body=part_of(body, number))
            for number in range(last)
        ]
        self._each(lambda each: self._part(each, twice=True), kept)
        request = RelayedRequest(
            transfer=transfer,
            what="serve",
            part=last,
            method=method,  # type: ignore[arg-type]  # one of the worker's routes
            target=target,
            authorization=headers.get("Authorization", ""),
            media=headers.get("Content-Type", ""),
            accept=headers.get("Accept", ""),
            agent=user_agent(__version__),
            body=part_of(body, last),
        )
        answer = self._part(request, wait_s=wait_s)
        return answer.status, answer.media, self._rest(transfer, answer)

    def close(self) -> None:
        """The connections are the job's."""

    def _rest(self, transfer: str, answer: RelayedAnswer) -> bytes:
        """The whole body of an answer."""
        if answer.size == len(answer.body):
            return answer.body
        if answer.size > MAX_ANSWER_BYTES:
            raise PeerUnreachable("the worker's answer is too large")
        wanted = [
            RelayedRequest(transfer=transfer, what="more", part=number) for number in range(1, parts_of(answer.size))
        ]
        pieces = [answer.body, *(each.body for each in self._each(lambda each: self._part(each, twice=True), wanted))]
        body = b"".join(pieces)
        if len(body) != answer.size:
            raise PeerUnreachable("the worker's answer is not of the protocol: its parts do not add up")
        gevent.spawn(self._thank, transfer)
        return body

    def _thank(self, transfer: str) -> None:
        try:
            self._call(RelayedRequest(transfer=transfer, what="over"), 0.0)
        except (NetworkError, Malformed):
            pass  # the worker forgets it by itself

    def _each(
        self, function: Callable[[RelayedRequest], RelayedAnswer], requests: Sequence[RelayedRequest]
    ) -> list[RelayedAnswer]:
        """Does a few at a time; the first error ends them all."""
        done: list[RelayedAnswer] = []
        for start in range(0, len(requests), PARTS_AT_ONCE):
            working = [gevent.spawn(_tried, function, each) for each in requests[start : start + PARTS_AT_ONCE]]
            try:
                for each in gevent.iwait(working):
                    if isinstance(each.value, NetworkError):
                        raise each.value
            finally:
                gevent.killall(working)
            done += [each.value for each in working]
        return done

    def _part(self, request: RelayedRequest, *, wait_s: float = 0.0, twice: bool = False) -> RelayedAnswer:
        """The worker's answer to one part; asked for again while there is no room, and where no answer came and that
        is harmless (`twice`)."""
        until_s = time.monotonic() + BUSY_FOR_S
        while True:
            try:
                answer = self._call(request, wait_s)
            except ProblemError as reason:
                if reason.status == 504 and twice:
                    twice = False
                    continue
                if reason.code == "unavailable":
                    raise RelayDown(f"the relay does not answer: {reason}") from None
                if reason.status not in _BUSY or time.monotonic() > until_s:
                    raise self._meaning(reason) from None
                asked_s = reason.fields.get("retry_after_s")
                gevent.sleep(asked_s if isinstance(asked_s, float) else PAUSE_S)
                continue
            except DiscoveryUnreachable as reason:
                if twice:
                    twice = False
                    gevent.sleep(PAUSE_S)
                    continue
                raise RelayDown(f"the relay does not answer: {reason}") from None
            except Malformed as reason:
                raise PeerUnreachable(f"the worker's answer is not of the protocol: {reason}") from None
            if answer.status == MISSING:
                raise PeerUnreachable("the worker has lost a part of what was sent, or of its answer", untouched=True)
            if request.what == "serve" or answer.status == KEPT:
                return answer
            if time.monotonic() > until_s:
                raise ProblemError(503, "busy", "the worker has no room for a request that it cannot get at once")
            gevent.sleep(PAUSE_S)

    def _call(self, request: RelayedRequest, wait_s: float) -> RelayedAnswer:
        wait_s = min(wait_s + PATIENCE_S, LONGEST_CALL_S)
        reply = self._relay.call(
            self._worker_id, m.CallRelay(relay_pass=self.relay_pass, wait_s=wait_s, call=pack(request))
        )
        return unpack_answer(reply.reply)

    def _meaning(self, reason: ProblemError) -> NetworkError:
        if reason.status in _BUSY:
            return reason
        return PeerUnreachable(
            f"the worker does not answer through the relay: {reason}",
            silent=reason.code == "no-answer",
            untouched=reason.code in _NOT_DELIVERED,
        )


def _tried(
    function: Callable[[RelayedRequest], RelayedAnswer], request: RelayedRequest
) -> RelayedAnswer | NetworkError:
    """What came of a request; raised in a greenlet, an error would be printed as well."""
    try:
        return function(request)
    except NetworkError as reason:
        return reason
