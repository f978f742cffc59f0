"""Attendance: keeps to its owner's terms. Looks at preferences, sensors and the clock: works, or does not, or ends.

When the worker is not to work it says so to discovery at once and gives back what it has not started, each with a
receipt of kind ``refused``; what runs is finished. What it does not want to begin with is given back as it comes.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import gevent
import msgspec

from ec262.config import WorkerSettings
from ec262.errors import EC262Error
from ec262.protocol.terms import ANYBODY, objection
from ec262.worker.events import EVENT, shown
from ec262.worker.holdings import HeldJob, HeldTask, Holdings
from ec262.worker.lease import Registration
from ec262.worker.preferences import LIVE, Watched
from ec262.worker.remembered import Remembered
from ec262.worker.sensors import Sensors, suspended_s
from ec262.worker.status import JobStatus, Status
from ec262.worker.terms import Decision, Pause, Readings, decide, last_use, read_hours, registered_terms
from ec262.worker.unsettled import UnsettledReceipts

log = logging.getLogger("ec262.worker")

_SUSPENDED_S = 1.0
_LONGEST_PAUSE_S = 366 * 86_400.0


class Attendance:
    """Decides, every few seconds and whenever its owner speaks, whether this worker works.

    Args:
        on_lost: called once, when discovery has not answered for `max_living_s`.
        on_given_back: called after leases were given back: there is room again.
        watched: the file of preferences; None: there is none to look at.

    Attributes:
        decision: the last one.

    Raises:
        SetupError: hours that are none; sensors that cannot be read.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        sensors: Sensors,
        remembered: Remembered,
        registration: Registration,
        holdings: Holdings,
        unsettled: UnsettledReceipts,
        *,
        on_lost: Callable[[], None],
        on_given_back: Callable[[], None],
        watched: Watched | None = None,
    ) -> None:
        self._settings = settings
        self._spans = read_hours(settings.hours)
        self._terms = registered_terms(settings)
        if self._terms != ANYBODY:
            registration.set_terms(self._terms)
        self._sensors = sensors
        self._remembered = remembered
        self._registration = registration
        self._holdings = holdings
        self._unsettled = unsettled
        self._on_lost = on_lost
        self._on_given_back = on_given_back
        self._watched = watched
        self._readings = sensors.read()
        self._began_s = time.monotonic()
        # Nobody knows what the machine was used for before: it counts as used until it has been idle for long enough.
        self._used_s = self._began_s
        self._suspended_s = suspended_s()
        self._blind = ""
        self._lost = self._leaving = False
        self._looker: gevent.Greenlet | None = None
        self.decision = Decision(settings.slots)
        self.look()

    @property
    def drain_s(self) -> float:
        """How long to wait for results to be fetched, once the worker leaves."""
        return self._settings.drain_s

    def start(self) -> None:
        """Begins to look, in a greenlet."""
        self._looker = gevent.spawn(self._keep_looking)

    def stop(self) -> None:
        """Looks no more. May be called twice."""
        if self._looker is not None:
            self._looker.kill()
            self._looker = None

    def leave(self) -> None:
        """The worker leaves: from now on nothing is given back, what was taken is finished."""
        self._leaving = True
        self.stop()

    # --- what is wanted ---

    def give_back_unwanted(self, job: HeldJob) -> None:
        """Refuses those queued leases of a job that this worker does not serve; to be called after a push."""
        if self._leaving:
            return
        if self.decision.willing and self._terms == ANYBODY and not self._settings.max_task_input_bytes:
            return
        self._give_back(job, self._objection)

    def _objection(self, task: HeldTask) -> str:
        if not self.decision.willing:
            return f"not now: {'; '.join(self.decision.reasons)}"
        most = self._settings.max_task_input_bytes
        if most and task.size > most:
            return f"this worker takes no task with more than {most} bytes of input"
        job = task.job
        return objection(
            *(self._terms,), account_id=job.account_id, job_id=job.job_id, cpu_limit_s=task.ticket.cpu_limit_s
        )

    def _give_back(self, job: HeldJob, why: Callable[[HeldTask], str]) -> None:
        receipts = self._holdings.refuse(job, why)
        if not receipts:
            return
        now_s = time.monotonic()
        for receipt in receipts:
            self._unsettled.keep(receipt, now_s)
        log.log(EVENT, "gave back %d tasks of job %s: %s", len(receipts), job.job_id[:8], shown(receipts[0].reason))
        self._on_given_back()

    # --- looking ---

    def look(self) -> None:
        """Reads everything anew and does what follows."""
        self._read_preferences()
        self._read_sensors()
        now_s, pause = time.monotonic(), self._remembered.pause
        if pause is not None and pause.until_s is not None and time.time() >= pause.until_s:
            self._remembered.set_pause(None)
            pause = None
        self._used_s = last_use(self._settings, self._readings, now_s, self._used_s)
        decision = decide(self._settings, self._spans, self._readings, pause=pause, unused_s=now_s - self._used_s)
        before, self.decision = self.decision, decision
        if decision.reasons != before.reasons:
            log.info("%s", f"not working: {'; '.join(decision.reasons)}" if decision.reasons else "working again")
        self._registration.set_willing(decision.willing)
        if not decision.willing:
            for job in list(self._holdings.jobs.values()):
                self._give_back(job, self._objection)
        self._note_earned()
        self._look_for_contact()

    def _note_earned(self) -> None:
        if self._registration.earned_at_start >= 0:  # else discovery has not said yet
            self._remembered.note_earned(self._registration.earned, time.strftime("%Y-%m-%d"))

    def _keep_looking(self) -> None:
        while True:
            gevent.sleep(self._settings.look_every_s)
            try:
                self.look()
            except Exception:
                log.exception("a fault of the worker while it looked at its owner's terms")

    def _read_preferences(self) -> None:
        if self._watched is None:
            return
        try:
            fresh = self._watched.changed(self._settings)
            if fresh is None:
                return
            spans = read_hours(fresh.hours)
        except EC262Error as reason:
            log.warning("preferences stay as they were: %s", shown(reason))
            return
        changed = [name for name in LIVE if getattr(fresh, name) != getattr(self._settings, name)]
        self._settings, self._spans = fresh, spans
        terms = registered_terms(fresh)
        if terms != self._terms:
            self._terms = terms
            self._registration.set_terms(terms)
        log.info("preferences read again: %s", ", ".join(changed) or "what changed counts from the next start on")

    def _read_sensors(self) -> None:
        try:
            self._readings = self._sensors.read()
            self._blind = ""
        except EC262Error as reason:
            if str(reason) != self._blind:
                log.warning("%s (the last readings stay in force)", shown(reason))
            self._blind = str(reason)

    def _look_for_contact(self) -> None:
        asleep_s = suspended_s()
        if asleep_s - self._suspended_s > _SUSPENDED_S:
            log.log(EVENT, "back after %.0f s in which this machine was suspended", asleep_s - self._suspended_s)
            self._registration.hurry()
        self._suspended_s = asleep_s
        most_s = self._settings.max_living_s
        if most_s and not self._lost and self._registration.is_down and self._registration.silent_s > most_s:
            self._lost = True
            log.warning("no word from discovery for %.0f s: the worker ends, as its owner wishes", most_s)
            self._on_lost()

    # --- what its owner asks ---

    def answer(self, request: dict[str, Any], make_status: Callable[[], Status]) -> dict[str, Any]:
        """Does what a request of the owner's says, and answers with the status after it."""
        wish, for_s = request.get("do"), request.get("for_s")
        if wish == "pause":
            until_s = None
            if for_s is not None:
                if not isinstance(for_s, int | float) or not 0 < for_s <= _LONGEST_PAUSE_S:
                    return {"error": "a pause is longer than no time and not longer than a year"}
                until_s = time.time() + for_s
            self._remembered.set_pause(Pause(until_s))
            self.look()
        elif wish == "resume":
            self._remembered.set_pause(None)
            self.look()
        elif wish != "status":
            return {"error": "it takes status, pause and resume"}
        return dict(msgspec.to_builtins(make_status()))

    def status(self, *, port: int, url: str, discovery: str) -> Status:
        """This worker now."""
        self._note_earned()
        registration, standing = self._registration, self._registration.standing
        pause = self._remembered.pause
        reasons = ["leaving", *self.decision.reasons] if self._leaving else list(self.decision.reasons)
        if pause is not None and pause.until_s is not None:
            until = time.strftime("%Y-%m-%d %H:%M", time.localtime(pause.until_s))
            reasons = [f"{each} until {until}" if each.startswith("paused") else each for each in reasons]
        return Status(
            pid=os.getpid(),
            port=port,
            url=url,
            worker_id=standing.worker_id if standing is not None else "",
            discovery=discovery,
            relay=standing is not None and standing.relay,
            connected=registration.is_registered and not registration.is_down,
            silent_s=round(registration.silent_s, 1) if standing is not None else -1.0,
            uptime_s=round(time.monotonic() - self._began_s, 1),
            slots=self._settings.slots,
            willing=self.decision.willing and not self._leaving,
            reasons=reasons,
            limits=limits_in_force(self._settings, self._readings),
            jobs=[
                JobStatus(
                    job_id=job.job_id,
                    account_id=job.account_id,
                    running=job.running,
                    queued=len(job.queue),
                    unfetched=len(job.outbox),
                )
                for job in self._holdings.jobs.values()
                if not job.idle
            ],
            taken=self._holdings.taken,
            finished=dict(self._unsettled.kinds),
            cpu_s=round(self._unsettled.cpu_s, 3),
            earned=registration.earned,
            earned_today=self._remembered.earned_today,
            earned_since_start=registration.earned - max(0, registration.earned_at_start),
        )


def limits_in_force(settings: WorkerSettings, readings: Readings) -> dict[str, str]:
    """Those preferences that are not the default, with what the sensors say beside them."""
    usual = WorkerSettings(slots=settings.slots)
    named = (
        *("min_price", "niceness", "memory_bytes", "only_idle", "only_on_mains", "hours", "max_task_cpu_s"),
        *("max_task_input_bytes", "allow_accounts", "deny_accounts", "allow_jobs", "deny_jobs", "max_living_s"),
    )
    said = {}
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        if each.name in named and value != getattr(usual, each.name):
            said[each.name] = ", ".join(value) if isinstance(value, tuple) else str(value)
    if settings.only_idle and readings.others_load is not None:
        said["only_idle"] += f" (others use {readings.others_load:.0%} of the processors)"
    if settings.only_on_mains:
        said["only_on_mains"] += " (on battery)" if readings.on_mains is False else " (on mains)"
    return said
