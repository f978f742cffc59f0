"""Verdict: whose result counts. Answers in, decision out; no I/O, no clock.

``redundancy=n, quorum=m``, the original's way: n replicas are asked, the first result that m of them agree on is
accepted. Where no m agree, just as many more are asked as could complete the largest group, up to `max_replicas`
that may have run it.

``confidence=p``: one replica is asked at first, and further ones until an answer is right with probability p, given
all answers and what is known of the workers (`discovery.credibility`). Some tasks get one more than that takes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from discovery.credibility import (
    CHANCES,
    NOTHING,
    QUIET,
    THOUSAND,
    USUAL,
    Assumptions,
    Noise,
    Standing,
    Tally,
    check_rate,
    clarity,
    credibility,
    odds,
    surety,
)
from ec262.protocol.receipts import Kind

Answer = tuple[Kind, bytes]
"""How a replica ended, and its commitment: two replicas agree when both are equal."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """`answer` counts; `confidence`: the probability that it is right, where that was reckoned."""

    answer: Answer
    confidence: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class More:
    """So many further replicas are needed."""

    replicas: int


@dataclass(frozen=True, slots=True)
class Pending:
    """Replicas that are still out can decide it."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """Nobody agrees and no more may be asked."""


Verdict = Accepted | More | Pending | Undecided


def decide(answers: Sequence[Answer], *, outstanding: int, quorum: int, max_replicas: int, gone: int = 0) -> Verdict:
    """The verdict on a task.

    Args:
        answers: of the replicas that reported, in the order of their numbers; refusals are no answers.
        outstanding: replicas that are waited for.
        quorum: how many have to agree.
        max_replicas: most answers, outstanding and gone replicas together.
        gone: replicas that nobody waits for any more and that may have run: given up, or fallen due.
    """
    groups = Counter(answers)
    largest = 0
    if groups:
        answer, largest = groups.most_common(1)[0]  # of equals the first seen: the lowest replica number
        if largest >= quorum:
            return Accepted(answer)
    missing = quorum - largest - outstanding
    if missing <= 0:
        return Pending()
    if len(answers) + outstanding + gone + missing > max_replicas:
        return Undecided()
    return More(missing)


class Voice(NamedTuple):
    """A worker's answer, and what is known of who gave it.

    Attributes:
        party: workers of one party count once: the account, or the worker where workers may share an account.
    """

    worker_id: str
    party: str
    answer: Answer
    standing: Standing


class FirstWord(NamedTuple):
    """What the answer of a worker is worth while it is a task's only one.

    Attributes:
        believed: how likely it is right.
        checked: it is a spot check of that worker where the task's chance is below this.
    """

    believed: float
    checked: float

    def counts(self, confidence: float, chance: int) -> bool:
        """Whether it is accepted, and the task not checked."""
        return self.believed >= confidence and chance >= self.checked


def first_word(of: Standing, assumed: Assumptions = USUAL) -> FirstWord:
    """A worker's, by what is known of it."""
    return FirstWord(credibility(of, assumed), check_rate((of,), assumed) * CHANCES)


class Heard(NamedTuple):
    """What a voice weighed. `believed` is 0 where it did not count: banned, or another of its party spoke for it."""

    voice: Voice
    believed: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why it was decided so: everything that went into it.

    Attributes:
        heard: every answer with what it weighed, in the order of the answers.
        probability: how likely each answer is right, given all of them.
        confidence: what was wanted.
        contested: whether believable workers disagree.
        check_rate: how often such a task is checked.
        checked: whether this is one that is.
        why: in words.
    """

    heard: tuple[Heard, ...]
    probability: Mapping[Answer, float]
    confidence: float
    contested: bool
    check_rate: float
    checked: bool
    why: str


@dataclass(frozen=True, slots=True)
class _Weighed:
    """Voices put together: for each answer the product of odds of those who gave it, the least of these, how many."""

    heard: list[Heard]
    odds: dict[Answer, float]
    weakest: dict[Answer, float]
    count: Counter[Answer]
    contested: bool

    def probability(self, answer: Answer, *, spare: bool = False) -> float:
        """How likely `answer` is right; with `spare` were the weakest of those who gave it not heard."""
        mine = self.odds.get(answer, 0.0)
        if not mine:
            return 0.0
        others = sum(self.odds.values()) - mine
        if spare:
            mine = mine / self.weakest[answer] if self.count[answer] > 1 else 0.0
        return mine / (1 + mine + others)

    @property
    def best(self) -> Answer | None:
        """The likeliest answer; of equals the first given."""
        return max(self.odds, key=self.odds.__getitem__, default=None)


MOST_ODDS = 1e12
"""So many to one is as certain as anything gets: keeps products in the range of numbers."""


def _weigh(voices: Sequence[Voice], assumed: Assumptions) -> _Weighed:
    believed = [credibility(voice.standing, assumed) for voice in voices]
    contested = False
    if len({voice.answer for voice in voices}) > 1:
        contested = len({v.answer for v, c in zip(voices, believed, strict=True) if c >= 0.5}) > 1
    if contested:
        believed = [
            c if v.standing.auditor else min(c, assumed.contested) for v, c in zip(voices, believed, strict=True)
        ]
    # Of one party the voice that is believed most speaks: the others add nothing, whatever they say.
    speaks: dict[str, int] = {}
    for at, voice in enumerate(voices):
        if voice.party not in speaks or believed[at] > believed[speaks[voice.party]]:
            speaks[voice.party] = at
    heard = []
    product: dict[Answer, float] = {}
    weakest: dict[Answer, float] = {}
    count: Counter[Answer] = Counter()
    for at, voice in enumerate(voices):
        counts = speaks[voice.party] == at and believed[at] > 0
        heard.append(Heard(voice, believed[at] if counts else 0.0))
        if counts:
            each = odds(believed[at])
            product[voice.answer] = min(product.get(voice.answer, 1.0) * each, MOST_ODDS)
            weakest[voice.answer] = min(weakest.get(voice.answer, MOST_ODDS), each)
            count[voice.answer] += 1
    return _Weighed(heard, product, weakest, count, contested)


def decide_credible(
    voices: Sequence[Voice],
    *,
    outstanding: int,
    confidence: float,
    max_replicas: int,
    chance: int,
    gone: int = 0,
    further: float | None = None,
    assumed: Assumptions = USUAL,
) -> Verdict:
    """The verdict on a task under ``confidence``: accepted is what is that likely right, given all answers.

    Args:
        voices: answers of the replicas that reported, in the order of their numbers; refusals are no answers.
        outstanding: replicas that are waited for.
        confidence: how likely the answer has to be right.
        max_replicas: most answers, outstanding and gone replicas together.
        chance: of this task (`chance_of`): below the rate of checks times `CHANCES` it is a spot check, and accepted
            only with one answer more than it takes.
        gone: replicas that nobody waits for any more and that may have run.
        further: how far the worker that is asked next is probably believed; None: it is a newcomer.
    """
    if len(voices) == 1:
        # Most tasks of a network that knows its workers: the first answer is believed, and the task not checked.
        (voice,) = voices
        alone = first_word(voice.standing, assumed)
        if alone.counts(confidence, chance):
            return Accepted(voice.answer, alone.believed)
    weighed = _weigh(voices, assumed)
    best = weighed.best
    reached = 0.0 if best is None else weighed.probability(best)
    ran = len(voices) + outstanding + gone
    if best is not None and reached >= confidence:
        if not _wants_check(voices, weighed, best, chance, confidence, assumed):
            return Accepted(best, reached)
        if outstanding:
            return Pending()
        return More(1) if ran < max_replicas else Accepted(best, reached)
    missing = _missing(weighed, confidence, 1 - assumed.dishonest if further is None else further, assumed)
    missing -= outstanding
    if missing <= 0:
        return Pending()
    if ran >= max_replicas:
        return Pending() if outstanding else Undecided()
    return More(min(missing, max_replicas - ran))


def _wants_check(
    voices: Sequence[Voice],
    weighed: _Weighed,
    best: Answer,
    chance: int,
    confidence: float,
    assumed: Assumptions,
) -> bool:
    """Whether the task is a spot check that has not been made yet."""
    rate = check_rate((voice.standing for voice in voices if voice.answer == best), assumed)
    return chance < rate * CHANCES and weighed.probability(best, spare=True) < confidence


def _missing(weighed: _Weighed, confidence: float, further: float, assumed: Assumptions) -> int:
    """How many further answers make the likeliest one believed, if all agree with it."""
    ratio = odds(min(further, assumed.contested) if weighed.contested else further)
    best = weighed.best
    if best is None:
        return 1  # one after the other: nobody knows who else will have the task
    mine = weighed.odds[best]
    others = 1 + sum(weighed.odds.values()) - mine
    wanted = odds(confidence) * others
    if mine >= wanted:
        return 1
    # A hair less than the logarithm says: four newcomers of 0.8 reach 0.99 by 256 : 99, three do not.
    return max(1, math.ceil(math.log(wanted / mine) / math.log(max(ratio, 2.0)) - 1e-9))


def belief(voices: Sequence[Voice], answer: Answer, *, assumed: Assumptions = USUAL) -> float:
    """How likely `answer` is right by what is known now: less than a job's confidence, and it is to be backed up."""
    return _weigh(voices, assumed).probability(answer)


def explain(
    voices: Sequence[Voice],
    *,
    confidence: float,
    chance: int,
    assumed: Assumptions = USUAL,
) -> Explanation:
    """The weights behind a verdict, and the verdict's reason in words."""
    weighed = _weigh(voices, assumed)
    best = weighed.best
    likely = {answer: weighed.probability(answer) for answer in weighed.odds}
    backers = [voice.standing for voice in voices if voice.answer == best]
    rate = check_rate(backers, assumed) if backers else 0.0
    checked = chance < rate * CHANCES
    if best is None:
        why = "nobody who counts has answered"
    else:
        same = sum(1 for each in weighed.heard if each.believed and each.voice.answer == best)
        other = sum(1 for each in weighed.heard if each.believed) - same
        why = f"{same} of {same + other} answers that count are alike, right with probability {likely[best]:.6f}"
        if weighed.contested:
            why += f"; workers disagree, so that none is believed more than {assumed.contested}"
        if likely[best] < confidence:
            why += f": less than the {confidence} that is wanted"
        elif checked and weighed.probability(best, spare=True) < confidence:
            why += f": the {confidence} that is wanted, but this one is checked"
        else:
            why += f": the {confidence} that is wanted" + (", and it was checked" if checked else "")
    return Explanation(tuple(weighed.heard), likely, confidence, weighed.contested, rate, checked, why)


def lessons(
    voices: Sequence[Voice],
    accepted: Answer,
    *,
    price: int = 1,
    noise: Noise = QUIET,
    assumed: Assumptions = USUAL,
) -> list[Tally]:
    """What a settled task adds to each worker's tally, in the order of the answers.

    Who agreed is verified as far as the others who agreed are believed without it; who dissented is doubted as far as
    what was accepted is believed without it, and as the job's noise lets a dissent mean anything. Dissenters share
    the doubt: the more there are, the likelier it is the program that differs. A worker that nobody was compared with
    learns nothing, and neither do those of one party from each other.
    """
    if len(voices) < 2:
        return [NOTHING] * len(voices)
    weighed = _weigh(voices, assumed)
    mine = weighed.odds.get(accepted, 0.0)
    others = sum(weighed.odds.values()) - mine
    dissenters = sum(1 for each in weighed.heard if each.believed and each.voice.answer != accepted)
    clear = clarity(noise, assumed) / max(1, dissenters)
    taught = []
    for each in weighed.heard:
        voice = each.voice
        # Also one that is banned is judged by the others: or a conviction would take back what it rests on.
        if not each.believed and not voice.standing.banned:
            taught.append(NOTHING)
            continue
        own = odds(each.believed) if each.believed else 1.0
        alone = bool(each.believed) and weighed.count[voice.answer] == 1
        if voice.answer == accepted:
            rest = 0.0 if alone else mine / own
            sure = surety(rest / (1 + rest + others), assumed)
            taught.append(Tally(verified=round(sure * THOUSAND) * min(price, assumed.most_price)))
        else:
            rest = others - weighed.odds.get(voice.answer, 0.0)
            if not alone:
                rest += weighed.odds.get(voice.answer, 0.0) / own
            sure = surety(mine / (1 + mine + rest), assumed) * clear
            # Not where three or more differ: then it is the program, whatever the auditor says.
            word = clear > 0.4 and any(
                other.believed and other.voice.standing.auditor and other.voice.answer == accepted
                for other in weighed.heard
            )
            doubts = round(sure * THOUSAND)
            taught.append(Tally(doubts=assumed.party_doubts * doubts, words=1) if word else Tally(doubts=doubts))
    return taught
