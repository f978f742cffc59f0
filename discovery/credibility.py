"""Credibility: how far a worker's word is believed, and what a settled task teaches about those who answered.

Numbers in, numbers out; no I/O, no clock. After L. Sarmenta, "Sabotage-Tolerance Mechanisms for Volunteer Computing
Systems" (Future Generation Computer Systems 18, 2002), with agreement in the place of his spot checks of known result:
nobody here knows a right answer beforehand. docs/trust.md has the formulas, what they assume and what was measured.

What is stored are integers in thousandths that only ever grow or shrink by increments: settlements of different tasks
never collide, and the order in which they come does not matter.

A request makes hundreds of the small types here: as msgspec's they take a fifth of a dataclass' time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import msgspec

THOUSAND = 1000
CHANCES = 1 << 32
"""A task's chance is a whole number below this one."""
CERTAIN = 1e-6
"""How likely an auditor is wrong."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What is taken for granted of workers; an operator may know better.

    Attributes:
        dishonest: share of workers that may lie, all of them together. Has to be below a half.
        honest_error: how often an honest worker's answer is wrong all the same (memory without parity, a bad disk).
        contested: no worker is believed more than this, auditors apart, where believable workers disagree: somebody
            lies just now, and liars who waited have as good a record as anybody.
        guilty: from this probability of being a liar on a worker is shunned, and with `accusers` convicted.
        accusers: in jobs of how many unrelated foremen a worker has to have dissented to be convicted.
        party_verified: most verified results that one foreman's jobs add to what other foremen believe.
        party_doubts: most doubts of the same kind.
        most_price: a result's price counts up to here.
        memory: verified results after which all that is remembered counts half: a worker that changes is found out.
        established: verified results from which on a worker is no newcomer any more.
        check: share of tasks that are checked though they would be accepted, where those who answered have `settled`
            verified results; more where they have fewer, less where they have more.
        least_check: nobody is checked less often.
        most_check: nor more often.
        settled: see `check`.
    """

    dishonest: float = 0.2
    honest_error: float = 0.001
    contested: float = 0.9
    guilty: float = 0.95
    accusers: int = 2
    party_verified: int = 20
    party_doubts: int = 3
    most_price: int = 4
    memory: int = 1000
    established: int = 10
    check: float = 0.1
    least_check: float = 0.05
    most_check: float = 0.5
    settled: int = 25


USUAL = Assumptions()


class Tally(msgspec.Struct, frozen=True, gc=False):
    """What is on record of one worker, in thousandths: all of it, or that from one foreman's jobs.

    Attributes:
        verified: results that others whom it is not related to came to as well.
        doubts: results that differed from what was accepted.
        words: not in thousandths: dissents from an auditor, and lost disputes. The doubts of these are counted, too.
    """

    verified: int = 0
    doubts: int = 0
    words: int = 0

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(self.verified + other.verified, self.doubts + other.doubts, self.words + other.words)

    def minus(self, other: Tally) -> Tally:
        """This without the other."""
        return Tally(self.verified - other.verified, self.doubts - other.doubts, self.words - other.words)

    @property
    def accuses(self) -> bool:
        """Whether this, what is `shared` of one foreman's tally, counts as an accusation."""
        return self.doubts >= THOUSAND // 2


NOTHING = Tally()


class Standing(msgspec.Struct, frozen=True, gc=False):
    """A worker in the eyes of one foreman.

    Attributes:
        verified: results verified, weighted.
        doubts: dissents from what was accepted, weighted.
        auditor: marked by the operator as one to believe.
        banned: convicted, or banned by the operator: counts nothing.
    """

    verified: float = 0.0
    doubts: float = 0.0
    auditor: bool = False
    banned: bool = False


NEWCOMER = Standing()


def shared(own: Tally, assumed: Assumptions = USUAL) -> Tally:
    """What of one foreman's tally others believe: capped, so that no foreman makes or breaks a name alone.

    Where the verified results are capped the doubts shrink alike: a long record with few of them is a good one.
    """
    verified, doubts, words = max(own.verified, 0), max(own.doubts, 0), max(own.words, 0)
    most, each = assumed.party_verified * THOUSAND, assumed.party_doubts * THOUSAND
    counted = doubts * most // verified if verified > most else doubts
    counted = max(counted, min(doubts, words * each))
    return Tally(min(verified, most), min(counted, (1 + words) * each), words)


def standing(
    known: Tally,
    own: Tally = NOTHING,
    *,
    auditor: bool = False,
    banned: bool = False,
    assumed: Assumptions = USUAL,
) -> Standing:
    """A worker as a foreman sees it: what all foremen share, and everything of what it saw in its own jobs.

    Args:
        known: the sum of `shared` over all foremen.
        own: this foreman's tally.
    """
    whole = known if own == NOTHING else known.minus(shared(own, assumed)).plus(own)
    return Standing(max(whole.verified, 0) / THOUSAND, max(whole.doubts, 0) / THOUSAND, auditor, banned)


def credibility(of: Standing, assumed: Assumptions = USUAL) -> float:
    """How likely the worker's next answer is right, were nobody else asked.

    Sarmenta's 1 - f/((1-f) k e): whatever share s of its results a saboteur falsifies, f (1-s)^k s is no more than
    that after k results were verified. A newcomer has 1 - f. With doubts: 1 - `guilt`, for it may lie always by now.
    """
    if of.banned:
        return 0.0
    if of.auditor:
        return 1 - CERTAIN
    f = assumed.dishonest
    wrong = f
    if of.verified > 0:
        wrong = min(f, f / ((1 - f) * of.verified * math.e))
    if of.doubts > 0:
        wrong = max(wrong, guilt(of, assumed) * min(1.0, of.doubts))
    return 1 - wrong


def guilt(of: Standing, assumed: Assumptions = USUAL) -> float:
    """How likely the worker is a liar, by Bayes: liars (f of all) falsify any share of their results, each share as
    likely as any other; the honest (1-f) are wrong once in 1/`honest_error` results.
    """
    return _guilt(of.verified, of.doubts, assumed.dishonest, assumed.honest_error)


@lru_cache(maxsize=1 << 16)
def _guilt(verified: float, doubts: float, f: float, error: float) -> float:
    lies = math.lgamma(doubts + 1) + math.lgamma(verified + 1) - math.lgamma(doubts + verified + 2)
    errs = doubts * math.log(error) + verified * math.log1p(-error)
    return 1 / (1 + (1 - f) / f * math.exp(min(errs - lies, 700.0)))


def shunned(of: Standing, assumed: Assumptions = USUAL) -> bool:
    """Whether a foreman that sees the worker so wants nothing to do with it."""
    return of.banned or (not of.auditor and guilt(of, assumed) >= assumed.guilty)


def unwelcome(of: Standing, *, doubted: bool, assumed: Assumptions = USUAL) -> bool:
    """Whether a foreman's tasks are not leased to the worker.

    Args:
        doubted: it dissented in this foreman's own jobs. What others saw makes a foreman believe a worker less; did it
            shun the worker for that, one foreman could keep whom it likes from all work, and nobody would ever be
            convicted by a second.
    """
    return of.banned or (doubted and shunned(of, assumed))


def convicted(known: Tally, accusers: int, assumed: Assumptions = USUAL) -> bool:
    """Whether a worker is to be banned, from what all foremen share.

    Args:
        known: the sum of `shared` over all foremen.
        accusers: how many unrelated foremen's tallies accuse it (`Tally.accuses`). An auditor's word or a lost dispute
            does as well.

    Asked again whenever evidence is withdrawn: a ban that rested on it ends with it.
    """
    heard = accusers >= assumed.accusers or known.words > 0
    return heard and shunned(standing(known, assumed=assumed), assumed)


def established(of: Standing, assumed: Assumptions = USUAL) -> bool:
    """Whether the worker is no newcomer any more."""
    return of.auditor or (of.verified >= assumed.established and not shunned(of, assumed))


def aged(tally: Tally, assumed: Assumptions = USUAL) -> Tally:
    """The tally to go on with: half of it once it is longer than memory should be."""
    if tally.verified < 2 * assumed.memory * THOUSAND:
        return tally
    return Tally(tally.verified // 2, tally.doubts // 2, tally.words)


def lost_dispute(assumed: Assumptions = USUAL) -> Tally:
    """What a worker's tally gains that delivered other bytes than it had committed itself to."""
    return Tally(doubts=assumed.party_doubts * THOUSAND, words=1)


def odds(believed: float) -> float:
    """Right : wrong."""
    return believed / (1 - believed)


def chance_of(secret: bytes, task_id: str) -> int:
    """The task's chance, below `CHANCES`: whether it is spot checked, and nobody without the secret can tell."""
    keyed = _keyed(secret).copy()
    keyed.update(task_id.encode())
    return int.from_bytes(keyed.digest(), "big")


@lru_cache(maxsize=8)
def _keyed(secret: bytes) -> blake2b:
    """BLAKE2b with a key (RFC 7693), ready to be copied: it is wanted for each task."""
    return blake2b(b"spot check ", key=secret, digest_size=4)


def check_rate(standings: Iterable[Standing], assumed: Assumptions = USUAL) -> float:
    """How often a task is checked though those who answered it would be believed: after the least known of them."""
    least = math.inf
    for each in standings:
        if each.verified < least and not each.auditor:
            least = each.verified
    rate = assumed.check * assumed.settled / least if least else 1.0
    return min(max(rate, assumed.least_check), assumed.most_check)


def surety(believed: float, assumed: Assumptions = USUAL) -> float:
    """What an answer believed so far verifies, 0 to 1: a newcomer's word alone verifies nobody."""
    return min(1.0, max(0.0, 1 - (1 - believed) / assumed.dishonest))


@dataclass(frozen=True, slots=True)
class Noise:
    """How much the answers in one job differ.

    Attributes:
        answers: answers of settled tasks that were compared with others.
        workers: workers that gave them.
        dissenters: those of them that dissented at least once.
    """

    answers: int = 0
    workers: int = 0
    dissenters: int = 0


QUIET = Noise()


def clarity(noise: Noise, assumed: Assumptions = USUAL) -> float:
    """What a dissent in such a job says about the dissenter: 1 everything, 0 nothing; half of it is nothing, too.

    Up to f of the workers may be liars, by chance two standard deviations more. Where more than these dissent, the
    program is not deterministic: the rate of error e that makes so many honest workers dissent follows from
    (1-f) (1-e)^(answers a worker) = share of workers that never dissented. At `honest_error` a dissent weighs all, at
    ten times that rate nothing. 0: what was learnt of dissents in this job is to be withdrawn.
    """
    f = assumed.dishonest
    if not noise.workers:
        return 1.0
    beyond = (noise.dissenters - 1 - 2 * math.sqrt(noise.workers * f * (1 - f))) / noise.workers
    if beyond <= f:
        return 1.0
    error = -math.log((1 - beyond) / (1 - f)) * noise.workers / noise.answers
    weight = 1.0 - math.log10(max(error / assumed.honest_error, 1.0))
    return weight if weight >= 0.5 else 0.0


def probability(groups: Sequence[float]) -> list[float]:
    """How likely each group of equal answers is right, given all answers; at most one can be.

    Args:
        groups: for each the product of its members' `odds`.
    """
    whole = 1 + sum(groups)
    return [each / whole for each in groups]
