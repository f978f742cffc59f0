"""Known: what the store says of workers in one foreman's eyes, and of its job, and how that is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from discovery.credibility import Noise, Standing, Tally, standing
from discovery.records import WorkerRecord

Job = tuple[str, str]
"""A job: its account and its id."""


class Shared(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What all foremen share of a worker's record, and the marks of its account; as in `WorkerRecord`."""

    verified: int
    doubts: int
    words: int
    banned: bool
    auditor: bool


class Standings(Mapping[str, Standing]):
    """Standings of workers by their ids, each reckoned when it is asked for: most never are.

    Args:
        shared: what all share of each of the workers.
        own: the foreman's own tallies of them: verified, doubts, words of the first, then of the second, ...
    """

    def __init__(self, worker_ids: Iterable[str], shared: Iterable[Shared | WorkerRecord], own: Sequence[int]) -> None:
        self._rows = dict(zip(worker_ids, zip(shared, own[0::3], own[1::3], own[2::3], strict=True), strict=True))
        self._made: dict[str, Standing] = {}

    def doubted(self) -> frozenset[str]:
        """Workers that dissented in this foreman's own jobs."""
        return frozenset([worker_id for worker_id, (_, _, doubts, _) in self._rows.items() if doubts > 0])

    def keys(self) -> KeysView[str]:
        """Ids of the workers; to ask whether one is among them reckons nothing."""
        return self._rows.keys()

    def __getitem__(self, worker_id: str) -> Standing:
        found = self._made.get(worker_id)
        if found is None:
            of, *own = self._rows[worker_id]
            known = Tally(of.verified, of.doubts, of.words)
            found = self._made[worker_id] = standing(known, Tally(*own), auditor=of.auditor, banned=of.banned)
        return found

    def __contains__(self, worker_id: object) -> bool:
        return worker_id in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of workers in one foreman's eyes, and of its job, at one instant.

    Attributes:
        party: of the foreman.
        unvested: credits of its balance that may not be spent yet.
        noise, noisy: of the job.
        effort: effort fees with a cap that accounts had of the job.
        undelivered: workers of whose results its foreman said that they did not arrive.
        held: hold fees that accounts' workers cost the foreman in the job.
        standings: by worker.
    """

    party: str
    unvested: int
    noise: Noise
    noisy: bool
    effort: dict[str, int]
    undelivered: frozenset[str]
    held: dict[str, int]
    standings: Standings


class KnownAnswer(msgspec.Struct, array_like=True, gc=False):
    """What `known` of parts/known.lua says. Numbers are text in Redis: read it with ``strict=False``."""

    party: str
    unvested: int
    answers: int
    compared: int
    differed: int
    noisy: bool
    effort: list[str]
    undelivered: list[str]
    held: list[str]
    own: list[int]

    def of(self, worker_ids: Iterable[str], shared: Iterable[Shared | WorkerRecord]) -> Known:
        """It, and what all share of the workers that it was asked about."""
        return Known(
            party=self.party,
            unvested=max(0, self.unvested),
            noise=Noise(max(0, self.answers), self.compared, self.differed),
            noisy=self.noisy,
            effort=_counts(self.effort),
            held=_counts(self.held),
            undelivered=frozenset(self.undelivered),
            standings=Standings(worker_ids, shared, self.own),
        )


_standings = msgspec.msgpack.Decoder(tuple[KnownAnswer, list[Shared]], strict=False)


def known_from(worker_ids: Iterable[str], answer: bytes) -> Known:
    """What standings.lua says of some workers."""
    answered, shared = _standings.decode(answer)
    return answered.of(worker_ids, shared)


def _counts(found: Sequence[str]) -> dict[str, int]:
    """A hash's fields and their values as a script gives them."""
    return {name: int(value) for name, value in zip(found[::2], found[1::2], strict=True)}
