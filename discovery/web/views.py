"""Views: the pages, one function each. They read; only signing in and out, and the name to be shown, change anything.

Every page works without scripts and reloads itself now and then; with scripts, the parts marked ``data-live`` are
replaced as they change. Nothing comes from another origin, which the content security policy makes sure of.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import redis
from flask import Blueprint, Flask, Response, g, render_template, request, send_from_directory, url_for

from discovery.credibility import Tally, established, standing
from discovery.gate import Gate
from discovery.jobs import Jobs
from discovery.keyring import Keyring
from discovery.leaderboard import Leaderboard
from discovery.metrics import ROUTE
from discovery.registry import Registry
from discovery.settings import Settings
from discovery.statements import Statements
from discovery.store.store import Store
from discovery.web import figures
from discovery.web.sessions import COOKIE, LASTS_S, Session, Sessions
from ec262 import __version__
from ec262.config import is_loopback
from ec262.errors import Malformed, ProblemError
from ec262.protocol import messages as m
from ec262.protocol.problems import CONTENT_TYPE
from ec262.protocol.routes import API_VERSION

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
LINES = 10
"""Lines of a statement on one page, and jobs where not all are asked for."""
MOST_KEY = 256
MOST_FORM_BYTES = 16 * 1024
KEPT_S = 24 * 3600
"""How long browsers keep style and script; another version has them under another address."""
_LOST = {404: "There is no page at this address.", 405: "Nothing is to be seen at this address."}
_ID = re.compile(r"[0-9a-f]{16,64}")
_STATIC = Path(__file__).parent / "static"

View = Callable[..., Response]


class Web:
    """The pages of one service."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        keyring: Keyring,
        jobs: Jobs,
        leaderboard: Leaderboard,
        settings: Settings,
        gate: Gate,
    ) -> None:
        self._store = store
        self._registry = registry
        self._sessions = Sessions(keyring.master)
        self._jobs = jobs
        self._leaderboard = leaderboard
        self._statements = Statements(store)
        self._settings = settings
        self._gate = gate

    # --- for everybody ---

    def network(self) -> Response:
        """GET / of a browser: the network now."""
        reading, history = self._store.pulse.read(), self._store.pulse.history()
        curve = figures.rates(history)
        return self._page(
            "network.html",
            reading=reading,
            rate=figures.lately(history, reading),
            points=figures.curve(curve),
            most=max(curve, default=0.0),
            covers_s=(history[-1].at_ms - history[0].at_ms) / 1000 if len(history) > 1 else 0,
        )

    def leaders(self) -> Response:
        """GET /leaderboard"""
        return self._page("leaderboard.html", board=self._leaderboard.get())

    def join(self) -> Response:
        """GET /join"""
        secure = self._gate.secure()
        here = f"{'https' if secure else 'http'}://{request.host}"
        try:
            plain = not (secure or is_loopback(here))
        except ValueError:  # no address at all: it is what the caller sent
            plain = True
        return self._page("join.html", here=here, plain=plain, settings=self._settings)

    def static(self, filename: str) -> Response:
        """GET /static/<file>: style, script, icon."""
        return send_from_directory(_STATIC, filename, max_age=KEPT_S)

    # --- signing in ---

    def sign_in_form(self) -> Response:
        """GET /sign-in"""
        if g.session is not None:
            return self._to("pages.account")
        return self._page("sign_in.html")

    def sign_in(self) -> Response:
        """POST /sign-in"""
        key = request.form.get("key", "")[:MOST_KEY].strip()
        account_id, _, secret = key.partition(":")
        if not self._own_form():
            return self._page("sign_in.html", 403, foreign=True)
        if not (_ID.fullmatch(account_id) and self._registry.authentic(account_id, secret)[0]):
            return self._page("sign_in.html", 403, wrong=True)
        stored, _ = self._store.accounts.secret(account_id)
        response = self._to("pages.account")
        response.set_cookie(
            *(self._cookie(), self._sessions.sign(account_id, stored or b"")),
            max_age=LASTS_S, httponly=True, samesite="Lax", secure=self._gate.secure(), path="/",
        )  # fmt: skip
        return response

    def sign_out(self, session: Session) -> Response:
        """POST /sign-out"""
        response = self._to("pages.network_page")
        response.delete_cookie(self._cookie(), path="/", httponly=True, samesite="Lax", secure=self._gate.secure())
        return response

    # --- for who is signed in ---

    def account(self, session: Session) -> Response:
        """GET /account"""
        return self._account(session)

    def rename(self, session: Session) -> Response:
        """POST /account/shown: the name on the leaderboard; none: not on it."""
        try:
            self._registry.show_account(session.account_id, m.ShowAccount(name=request.form.get("name", "")[:64]))
        except Malformed as reason:
            return self._account(session, 400, refused=str(reason))
        return self._to("pages.account")

    def job(self, session: Session, job_id: str) -> Response:
        """GET /account/jobs/<id>"""
        found = next((each for each in self._jobs.of(session.account_id).jobs if each.job_id == job_id), None)
        if found is None:
            return self._page("missing.html", 404, what="job")
        return self._page("job.html", job=found)

    def worker(self, session: Session, worker_id: str) -> Response:
        """GET /account/workers/<id>"""
        found = self._store.workers([worker_id]).get(worker_id) if _ID.fullmatch(worker_id) else None
        if found is None or found.account_id != session.account_id:
            return self._page("missing.html", 404, what="worker")
        seen = standing(Tally(found.verified, found.doubts, found.words), banned=found.banned, auditor=found.auditor)
        return self._page(
            "worker.html",
            worker=found,
            alive=worker_id in self._store.accounts.workers_alive(session.account_id),
            counts=self._store.worker_counts(worker_id),
            established=established(seen),
        )

    def _account(self, session: Session, status: int = 200, refused: str = "") -> Response:
        given = request.args.get("before", "0")
        before = int(given) if given.isascii() and given.isdigit() and len(given) <= 16 else 0
        alive = self._store.accounts.workers_alive(session.account_id)
        jobs = self._jobs.of(session.account_id).jobs
        return self._page(
            "account.html",
            status,
            state=self._registry.account_state(session.account_id),
            jobs=jobs if "all" in request.args else jobs[:LINES],
            all_jobs=len(jobs),
            workers=sorted(self._store.workers(alive).values(), key=lambda each: each.worker_id),
            statement=self._statements.of(session.account_id, before, LINES),
            refused=refused,
        )

    # --- what they share ---

    def blueprint(self) -> Blueprint:
        """All pages, and what they look like."""
        pages = Blueprint("pages", __name__, template_folder="templates")
        for path, name, view in (
            ("/network", "network_page", self.network),
            ("/leaderboard", "leaders", self.leaders),
            ("/join", "join", self.join),
            ("/sign-in", "sign_in_form", self.sign_in_form),
            ("/static/<filename>", "static", self.static),
        ):
            pages.add_url_rule(path, name, self._answering(view), methods=["GET"])
        pages.add_url_rule("/sign-in", "sign_in", self._answering(self.sign_in), methods=["POST"])
        for method, path, name, own in (
            ("GET", "/account", "account", self.account),
            ("GET", "/account/jobs/<job_id>", "job", self.job),
            ("GET", "/account/workers/<worker_id>", "worker", self.worker),
            ("POST", "/account/shown", "rename", self.rename),
            ("POST", "/sign-out", "sign_out", self.sign_out),
        ):
            pages.add_url_rule(path, name, self._signed_in(own), methods=[method])
        pages.after_request(_guard)
        for each in (figures.whole, figures.rate, figures.size, figures.span, figures.clock):
            pages.add_app_template_filter(each)
        return pages

    def greet(self, app: Flask) -> None:
        """Has a browser see pages where programs get JSON: the network at ``/``, and nothing elsewhere."""

        network = self._answering(self.network)

        @app.before_request
        def browsers() -> Response | None:
            if request.path != "/" or request.method != "GET" or not _wants_page():
                return None
            return _guard(network())

        @app.after_request
        def lost(response: Response) -> Response:
            if request.path == "/":
                response.headers["Vary"] = "Accept, Cookie"
            if response.status_code not in _LOST or response.mimetype != CONTENT_TYPE or not _wants_page():
                return response
            if request.path.startswith(f"/{API_VERSION}/"):
                return response
            g.session = g.get("session")
            page = _guard(self._trouble(response.status_code, _LOST[response.status_code]))
            page.headers.extend((name, value) for name, value in response.headers if name == "Allow")
            return page

    def _signed_in(self, view: View) -> View:
        @wraps(view)
        def answer(**path: str) -> Response:
            session: Session | None = g.session
            if session is None:
                return self._to("pages.sign_in_form")
            if request.method == "POST" and not (
                self._own_form() and request.form.get("form_token") == session.form_token
            ):
                return self._page("sign_in.html", 403, foreign=True)
            return view(session, **path)

        return self._answering(answer)

    def _answering(self, view: View) -> View:
        """A view with the limits of all requests in front of it, whose errors are pages, too."""

        @wraps(view)
        def answer(**path: str) -> Response:
            request.environ[ROUTE] = f"pages.{view.__name__}"
            request.max_content_length = MOST_FORM_BYTES
            g.session = None
            try:
                self._gate.admit(self._account_signed_in, anonymous=self._cookie() not in request.cookies)
                return view(**path)
            except ProblemError as error:
                return self._trouble(error.status, error.detail)
            except redis.RedisError:  # sweeping says so in the log
                return self._trouble(503, "The service's store does not answer. Try again in a moment.")

        return answer

    def _account_signed_in(self) -> str:
        """Finds out who asks; empty: nobody."""
        cookie = request.cookies.get(self._cookie(), "")
        named = self._sessions.named(cookie) if cookie else None
        if named is None:
            return ""
        g.session = self._sessions.open(cookie, *named, self._store.accounts.secret(named[0])[0])
        return g.session.account_id if g.session else ""

    def _cookie(self) -> str:
        """The cookie's name. Over TLS browsers take one that begins so only from this very host, over TLS: nobody who
        can speak for the host without TLS, or for its neighbours, can sign a victim in as somebody else (RFC 6265bis,
        4.1.3.2)."""
        return f"__Host-{COOKIE}" if self._gate.secure() else COOKIE

    def _own_form(self) -> bool:
        """Whether a form came from a page of this service, as far as the browser says (Sec-Fetch-Site; Origin)."""
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = request.headers.get("Origin")
        return origin is None or origin.partition("://")[2] == request.host

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        made = render_template(
            template, network=self._settings.network, version=__version__, session=g.session, **values
        )
        return Response(made, status, mimetype="text/html")

    def _trouble(self, status: int, detail: str) -> Response:
        return self._page("problem.html", status, detail=detail)

    def _to(self, endpoint: str) -> Response:
        return Response(status=303, headers={"Location": url_for(endpoint)})


def _wants_page() -> bool:
    best = request.accept_mimetypes.best_match(["application/json", "text/html"])
    return best == "text/html" and "text/html" in request.headers.get("Accept", "")


def _guard(response: Response) -> Response:
    headers = response.headers
    headers["Content-Security-Policy"] = POLICY
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "same-origin"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Permissions-Policy"] = "camera=(), geolocation=(), microphone=()"
    if response.mimetype == "text/html":
        headers["Cache-Control"] = "no-store"
        headers["Vary"] = "Accept, Cookie"
    return response
