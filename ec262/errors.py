"""Every error EC262 raises on purpose, as one tree.

The docstring of a class says what happened and whose fault it is; the message of an instance adds the
particulars and what to do about it. Catch `EC262Error` to catch them all.
"""

from __future__ import annotations


class EC262Error(Exception):
    """Something in EC262 went wrong; the subclass says what and whose fault it is."""


# --- the user's program or data -------------------------------------------------------------------


class ProgramError(EC262Error):
    """The program given to `run_job` cannot be used as it is; its author has to change it."""


class ValueNotPortable(ProgramError):
    """A key or value cannot travel between machines; the program or the data hold a type outside the format."""


class TaskFailed(ProgramError):
    """The program raised an exception while it computed a task; the remote traceback is in the message.

    Attributes:
        error_type: name of the exception's type, such as ``"ZeroDivisionError"``.
        remote_traceback: the traceback's user frames, as text without control characters.
    """

    def __init__(self, message: str, *, error_type: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        self.error_type = error_type
        self.remote_traceback = remote_traceback


class LimitExceeded(TaskFailed):
    """A task used more CPU time, wall clock, memory or output than it was allowed; raise the limit or split finer."""


# --- the network a job runs on --------------------------------------------------------------------


class NetworkError(EC262Error):
    """A party of the network could not be reached or did not keep to the protocol."""


class DiscoveryUnreachable(NetworkError):
    """The discovery service does not answer; check its address and that it runs."""


class WorkerLost(DiscoveryUnreachable):
    """A worker had no word from discovery for as long as its owner lets it live; so it ended by itself."""


class NoWorkers(NetworkError):
    """No worker that fits is free and none came while the job waited; start workers or wait longer."""


class JobFailed(NetworkError):
    """The job could not be completed: tasks failed more often than the policy allows."""


class JobCancelled(EC262Error):
    """The job was cancelled; what was done is paid for, the rest of the escrow goes back."""


class ProblemError(NetworkError):
    """The other side refused a request and said why (RFC 9457).

    Attributes:
        status: the HTTP status.
        code: the stable code of the problem, such as ``"insufficient-credits"``.
        fields: what the problem says beside status, code and detail.
    """

    def __init__(self, status: int, code: str, detail: str, **fields: object) -> None:
        super().__init__(f"{detail} ({code}, HTTP {status})")
        self.status = status
        self.code = code
        self.detail = detail
        self.fields = fields


class InsufficientCredits(ProblemError):
    """The foreman's account cannot pay for a single task; earn credits by running a worker or ask for some."""


class Unauthorized(ProblemError):
    """The account or its secret is wrong; the credentials file of this machine names another network or is old."""


# --- bytes from strangers -------------------------------------------------------------------------


class SealBroken(EC262Error):
    """A sealed token does not open: wrong key, changed or truncated on its way."""


class Malformed(EC262Error):
    """Bytes from outside do not have the form that the protocol prescribes; the sender is at fault."""


class TicketRefused(EC262Error):
    """A ticket is not valid here and now; the message says why."""


# --- this machine ---------------------------------------------------------------------------------


class SetupError(EC262Error):
    """This machine lacks something EC262 needs, or a setting is wrong; the message says what to do."""


class SandboxUnavailable(SetupError):
    """This machine cannot confine strangers' code, so no worker for others may run here."""
