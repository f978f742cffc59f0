"""Views: the pages, one function each. They read; only signing in and out, and the name to be shown, change anything.

Every page works without scripts and reloads itself now and then; with scripts, the parts marked ``data-live`` are
replaced as they change. Nothing comes from another origin, which the content security policy makes sure of.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import Blueprint, Flask, Response, render_template, request, url_for

from discovery.credibility import Tally, established, standing
from discovery.jobs import Jobs
from discovery.keyring import Keyring
from discovery.leaderboard import Leaderboard
from discovery.registry import Registry
from discovery.settings import Settings
from discovery.statements import Statements
from discovery.store.store import Store
from discovery.web import figures
from discovery.web.sessions import COOKIE, LASTS_S, Session, Sessions
from ec262.errors import Malformed, ProblemError
from ec262.protocol import messages as m

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
LINES = 25
"""Lines of a statement on one page."""
MOST_KEY = 256
_ID = re.compile(r"[0-9a-f]{16,64}")

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
    ) -> None:
        self._store = store
        self._registry = registry
        self._sessions = Sessions(keyring.master)
        self._jobs = jobs
        self._leaderboard = leaderboard
        self._statements = Statements(store)
        self._settings = settings

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
        return self._page("join.html", here=request.url_root.rstrip("/"), settings=self._settings)

    # --- signing in ---

    def sign_in_form(self) -> Response:
        """GET /sign-in"""
        if self._session() is not None:
            return self._to("pages.account")
        return self._page("sign_in.html", wrong=False)

    def sign_in(self) -> Response:
        """POST /sign-in"""
        key = request.form.get("key", "")[:MOST_KEY].strip()
        account_id, _, secret = key.partition(":")
        if not (self._own_form() and _ID.fullmatch(account_id) and self._registry.authentic(account_id, secret)[0]):
            return self._page("sign_in.html", 403, wrong=True)
        stored, _ = self._store.accounts.secret(account_id)
        response = self._to("pages.account")
        response.set_cookie(
            *(COOKIE, self._sessions.sign(account_id, stored or b"")),
            max_age=LASTS_S, httponly=True, samesite="Lax", secure=request.is_secure, path="/",
        )  # fmt: skip
        return response

    def sign_out(self, session: Session) -> Response:
        """POST /sign-out"""
        response = self._to("pages.network_page")
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="Lax", secure=request.is_secure)
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
        return self._page(
            "account.html",
            status,
            state=self._registry.account_state(session.account_id),
            jobs=self._jobs.of(session.account_id).jobs,
            workers=sorted(self._store.workers(alive).values(), key=lambda each: each.worker_id),
            statement=self._statements.of(session.account_id, before, LINES),
            refused=refused,
        )

    # --- what they share ---

    def blueprint(self) -> Blueprint:
        """All pages, and what they look like."""
        pages = Blueprint(
            "pages", __name__, template_folder="templates", static_folder="static", static_url_path="/static"
        )
        for path, name, view in (
            ("/network", "network_page", self.network),
            ("/leaderboard", "leaders", self.leaders),
            ("/join", "join", self.join),
            ("/sign-in", "sign_in_form", self.sign_in_form),
        ):
            pages.add_url_rule(path, name, _answering(view), methods=["GET"])
        pages.add_url_rule("/sign-in", "sign_in", _answering(self.sign_in), methods=["POST"])
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
        """Has a browser that asks for ``/`` see the network; programs get JSON, as ever."""

        @app.before_request
        def browsers() -> Response | None:
            if request.path != "/" or request.method != "GET" or not _wants_page():
                return None
            return _guard(self.network())

    def _signed_in(self, view: View) -> View:
        @wraps(view)
        def answer(**path: str) -> Response:
            session = self._session()
            if session is None:
                return self._to("pages.sign_in_form")
            if request.method == "POST" and not (
                self._own_form() and request.form.get("form_token") == session.form_token
            ):
                return self._page("sign_in.html", 403, wrong=False, foreign=True)
            return view(session, **path)

        return _answering(answer)

    def _session(self) -> Session | None:
        cookie = request.cookies.get(COOKIE, "")
        named = self._sessions.named(cookie) if cookie else None
        if named is None:
            return None
        return self._sessions.open(cookie, *named, self._store.accounts.secret(named[0])[0])

    def _own_form(self) -> bool:
        """Whether a form came from a page of this service, as far as the browser says (Sec-Fetch-Site; Origin)."""
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = request.headers.get("Origin")
        return origin is None or origin.partition("://")[2] == request.host

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        values.setdefault("session", self._session())
        return Response(
            render_template(template, network=self._settings.network, **values), status, mimetype="text/html"
        )

    def _to(self, endpoint: str) -> Response:
        return Response(status=303, headers={"Location": url_for(endpoint)})


def _answering(view: View) -> View:
    """Errors of these views are pages, too."""

    @wraps(view)
    def answer(**path: str) -> Response:
        request.max_content_length = 16 * 1024
        try:
            return view(**path)
        except ProblemError as error:
            return Response(render_template("problem.html", detail=error.detail, session=None), error.status)

    return answer


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
