"""Jobs: what foremen say of them, for their own account to see. Nothing is decided by it and no credit moves."""

from __future__ import annotations

import re

import msgspec

from discovery.settings import Settings
from discovery.store.store import Store
from ec262.errors import Malformed, ProblemError
from ec262.protocol import messages as m

_JOB_ID = re.compile(r"[0-9a-f]{16,32}")


class Jobs:
    """Keeps the last report of each job for a while."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings

    def report(self, account_id: str, job_id: str, said: m.JobReport) -> m.JobReported:
        """Keeps a report in place of the job's last one. Another account's job of the same id is another job.

        Raises:
            ProblemError: ``bad-request``, not the id of a job.
            Malformed: a name that is not printable.
        """
        if not _JOB_ID.fullmatch(job_id):
            raise ProblemError(400, "bad-request", "the id of a job is 16 to 32 hexadecimal digits")
        for field, text in (("name", said.name), ("phase", said.phase)):
            if not text.isprintable():
                raise Malformed(f"{field}: has to be printable, without control characters")
        ended = said.state != "running"
        kept_s = self._settings.ended_job_s if ended else self._settings.silent_job_s
        self._store.report_job(
            account_id,
            job_id,
            m.encode(said),
            ended=ended,
            keep_ms=int(kept_s * 1000),
            most=self._settings.account_jobs,
        )
        return m.JobReported(kept_s=kept_s)

    def of(self, account_id: str) -> m.Jobs:
        """The jobs of an account, the last started first."""
        now_ms, found = self._store.jobs(account_id)
        states = [
            m.JobState(
                **msgspec.structs.asdict(m.decode(m.JobReport, job.report)),
                job_id=job.job_id,
                started_s=job.started_ms / 1000,
                updated_s=job.updated_ms / 1000,
                age_s=(now_ms - job.started_ms) / 1000,
                silent_s=(now_ms - job.updated_ms) / 1000,
            )
            for job in sorted(found, key=lambda job: (-job.started_ms, job.job_id))
        ]
        return m.Jobs(server_time_s=now_ms / 1000, jobs=states)
