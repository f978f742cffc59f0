"""Terms: whom a worker serves, and with tasks of what size. One rule for discovery, which keeps other tasks away from
it, and for the worker, which refuses what comes all the same. Pure.
"""

from __future__ import annotations

from ec262.protocol.messages import WorkerTerms

ANYBODY = WorkerTerms()
"""A worker that serves everybody."""


def objection(terms: WorkerTerms, *, account_id: str, job_id: str, cpu_limit_s: float) -> str:
    """Why a worker with these terms does not serve such a task; empty: it does.

    Args:
        account_id: the foreman's; empty: discovery did not say, and then no account is denied, nor one allowed.
        cpu_limit_s: CPU seconds that the task may use.
    """
    if terms.max_task_cpu_s and cpu_limit_s > terms.max_task_cpu_s:
        return f"this worker takes no task of more than {terms.max_task_cpu_s:g} CPU seconds"
    if account_id in terms.deny_accounts or job_id in terms.deny_jobs:
        return "this worker does not serve this account or job"
    only = terms.allow_accounts or terms.allow_jobs
    if only and account_id not in terms.allow_accounts and job_id not in terms.allow_jobs:
        return "this worker serves other accounts or jobs only"
    return ""
