"""The web application: pages made by the server, one image at a time, each answer stored before the next image shows.

The server knows a study's folder. It has no key and cannot tell real from generated, and it knows the readers' secrets
only by their digests. Whoever comes without a secret gets the same "not found" for every address.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import PackageLoader
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study.answers import AnswerStore, Outcome, Row
from nodule_plugin.reader_study.questions import (
    CANNOT_JUDGE,
    CODES,
    COMMENT,
    CONFIDENCE,
    GENERATED,
    ITEMS,
    MAX_COMMENT,
    ORIGIN,
    REAL,
    Answer,
    read_answer,
)
from nodule_plugin.reader_study.study import Step, Study, hash_secret, read_links
from nodule_plugin.reader_study.texts import LANGUAGES, SCALE_LABELS, TEXTS, choose_language
from nodule_plugin.report.html import environment

_logger = logging.getLogger(__name__)

MAX_FORM_BYTES = 64 * 1024
MAX_VISIBLE_MS = 7 * 24 * 3600 * 1000
LANGUAGE_COOKIE = "language"
SOFT_TISSUE_HU, LUNG_HU = (-160.0, 240.0), (-1350.0, 150.0)
"""Windows to choose from beside the stored one: width 400 at level 40, width 1,500 at level -600."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}


@dataclass(frozen=True)
class Visit:
    """A request by a known reader.

    Attributes:
        reader: who.
        home: address of the reader's own pages.
        language: that the pages speak.
        steps: the reader's sequence.
        answers: image -> the reader's answers, the oldest first.
    """

    reader: str
    home: str
    language: str
    steps: list[Step]
    answers: Mapping[str, list[Row]]

    @property
    def next_step(self) -> Step | None:
        """The first image without an answer."""
        return next((step for step in self.steps if step.image not in self.answers), None)

    def step(self, number: int) -> Step:
        """A step that the reader may see: an answered one or the next.

        Raises:
            HTTPException: 404 for any other.
        """
        last = self.next_step.number if self.next_step else len(self.steps)
        if not 1 <= number <= last:
            raise HTTPException(404)
        return self.steps[number - 1]

    def address(self, step: Step | None, **query: Any) -> str:
        """The address of a step's page, or of the overview."""
        path = self.home if step is None else f"{self.home}/{step.number}"
        return f"{path}?{urlencode(query)}" if query else path


def create_app(study: Study, root_path: str = "") -> ASGIApp:
    """The application for one study.

    Args:
        study: whose answers go to the database in its folder.
        root_path: under which a proxy shows the application, such as "/study"; the proxy takes it off.
    """
    # No redirects to paths with another slash: they would take the host's name from the request.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.study = study
    app.state.store = AnswerStore(study.answers_file, study.content["id"], create=not study.keyed_answers)
    app.state.pages = Pages(study, root_path.rstrip("/"))
    app.mount("/static", StaticFiles(directory=str(files(__package__) / "static")), name="static")
    app.include_router(_router)
    app.middleware("http")(_keep_language)
    for error in (StarletteHTTPException, RequestValidationError):
        app.add_exception_handler(error, _show_not_found)
    app.add_exception_handler(sqlite3.Error, _show_not_saved)
    for damage in (InputError, OSError):  # a file of the study is damaged or gone, or no file can be opened
        app.add_exception_handler(damage, _show_unavailable)
    return with_headers(app)


def with_headers(app: ASGIApp) -> ASGIApp:
    """An application whose every answer carries :data:`HEADERS`, those to its own errors as well."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await app(scope, receive, send_with_headers)

    return wrapped


async def _read_form(request: Request) -> dict[str, str]:
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MAX_FORM_BYTES:
        raise HTTPException(413)
    fields = await request.form(max_files=0, max_fields=50)
    return {name: value for name, value in fields.items() if isinstance(value, str)}


def _find_visit(request: Request, secret: str) -> Visit:
    study, store = request.app.state.study, request.app.state.store
    # Read at each request: a link that was replaced must stop working at once.
    reader = read_links(study).get(hash_secret(secret))
    if reader is None:
        raise HTTPException(404)
    home = f"{request.app.state.pages.root}/r/{secret}"
    return Visit(reader, home, _language(request), study.sequences[reader], store.of_reader(reader))


_Known = Annotated[Visit, Depends(_find_visit)]
_Form = Annotated[dict[str, str], Depends(_read_form)]
_router = APIRouter(default_response_class=HTMLResponse)


@_router.get("/r/{secret}")
def _get_overview(request: Request, visit: _Known, changed: int | None = None) -> Response:
    return HTMLResponse(request.app.state.pages.overview(visit, changed))


@_router.get("/r/{secret}/{number}")
def _get_step(request: Request, visit: _Known, number: int, changed: int | None = None) -> Response:
    step = visit.step(number)
    request.app.state.store.note_view(visit.reader, step.image)
    return HTMLResponse(request.app.state.pages.step(visit, step, changed=changed))


@_router.get("/r/{secret}/{number}/image")
def _get_image(request: Request, visit: _Known, number: int) -> Response:
    return Response(request.app.state.study.read_image(visit.step(number).image), media_type="image/png")


@_router.post("/r/{secret}/{number}")
def _post_answer(request: Request, visit: _Known, number: int, form: _Form) -> Response:
    pages, store = request.app.state.pages, request.app.state.store
    step = visit.step(number)
    answer, missing = read_answer(form)
    if missing:
        return HTMLResponse(pages.step(visit, step, entered=form, missing=missing), 422)
    outcome = store.save(
        visit.reader,
        step.image,
        answer,
        submission=form.get("submission") or secrets.token_urlsafe(16),
        on_revision=_whole(form.get("on_revision"), 10**6) or 0,
        visible_ms=_whole(form.get("visible_ms"), MAX_VISIBLE_MS),
    )
    fresh = replace(visit, answers=store.of_reader(visit.reader))
    if outcome is Outcome.CONFLICT:
        return HTMLResponse(pages.step(fresh, step, entered=form, conflict=True), 409)
    following = fresh.steps[number] if number < len(fresh.steps) else None
    target = fresh.address(following, **({"changed": number} if outcome is Outcome.CHANGED else {}))
    if request.headers.get("accept") == "application/json":
        return JSONResponse({"next": target})
    return RedirectResponse(target, 303)


async def _keep_language(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    if (language := request.query_params.get("language")) in LANGUAGES:
        response.set_cookie(LANGUAGE_COOKIE, language, max_age=365 * 24 * 3600, httponly=True, samesite="strict")
    return response


async def _show_not_found(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, StarletteHTTPException) else 404
    return HTMLResponse(request.app.state.pages.error(_language(request), "not_found"), status)


async def _show_unavailable(request: Request, error: Exception) -> Response:
    _logger.error("%s", error)
    return HTMLResponse(request.app.state.pages.error(_language(request), "unavailable"), 503)


async def _show_not_saved(request: Request, error: Exception) -> Response:
    return HTMLResponse(request.app.state.pages.error(_language(request), "not_saved"), 503)


def _language(request: Request) -> str:
    wanted = (request.query_params.get("language"), request.cookies.get(LANGUAGE_COOKIE))
    return choose_language(*wanted, request.headers.get("accept-language"))


def _whole(text: str | None, most: int) -> int | None:
    return min(int(text), most) if text and text.isascii() and text.isdecimal() and len(text) < 20 else None


class Pages:
    """The pages as HTML text.

    Args:
        study: that they show.
        root: what every address begins with.
    """

    def __init__(self, study: Study, root: str = "") -> None:
        self.study, self.root = study, root
        self._templates = environment(PackageLoader(__package__, "templates"))

    def error(self, language: str, name: str) -> str:
        """A page that says that something is not there, or was not saved."""
        return self._render("error.html", language, visit=None, heading=name, text=f"{name}_text")

    def overview(self, visit: Visit, changed: int | None = None) -> str:
        """Where a reader starts, goes on, and finds the answers given so far."""
        answered = [step for step in visit.steps if step.image in visit.answers]
        return self._render(
            "overview.html",
            visit.language,
            visit=visit,
            done=len(answered),
            answered=[(step, step_name(visit, step), len(visit.answers[step.image]) > 1) for step in answered],
            message=self._message(visit, changed),
            next_name=step_name(visit, visit.next_step) if visit.next_step else None,
        )

    def step(
        self,
        visit: Visit,
        step: Step,
        entered: Mapping[str, str] | None = None,
        missing: list[str] | None = None,
        conflict: bool = False,
        changed: int | None = None,
    ) -> str:
        """One image and its questions.

        Args:
            visit, step: who sees what.
            entered: what the reader had filled in, if it was not saved; else the stored answer is filled in.
            missing: fields without an answer, of a form that was not saved for that reason.
            conflict: the form was not saved because the answer was given elsewhere meanwhile.
            changed: number of a step whose answer has just been changed, to be told.
        """
        stored = visit.answers.get(step.image, [])
        values = dict(entered) if entered is not None else (_as_form(stored[-1].answer) if stored else {})
        on_revision = str(len(stored))
        if entered is not None and not conflict:
            on_revision = entered.get("on_revision", on_revision)
        lower, upper = self.study.content["window_hu"]
        texts = TEXTS[visit.language]
        return self._render(
            "step.html",
            visit.language,
            visit=visit,
            step=step,
            name=step_name(visit, step),
            values=values,
            missing=missing or [],
            stored=stored,
            stored_words=_words(stored[-1].answer, visit.language) if stored else [],
            conflict=conflict,
            on_revision=on_revision,
            submission=secrets.token_urlsafe(16),
            visible_ms=(entered or {}).get("visible_ms", "0"),
            message=self._message(visit, changed),
            previous=visit.steps[step.number - 2] if step.number > 1 else None,
            window_hu=(lower, upper),
            windows=[("stored", (lower, upper)), ("lung", LUNG_HU), ("soft", SOFT_TISSUE_HU)],
            keyboard_help=texts["keyboard_help"].format(viewer_keys=texts["viewer_keys"]),
        )

    def _render(self, template: str, language: str, **values: Any) -> str:
        shared = {
            "t": TEXTS[language],
            "labels": SCALE_LABELS[language],
            "language": language,
            "languages": LANGUAGES,
            "study": self.study,
            "root": self.root,
            "items": ITEMS,
            "codes": CODES,
            "origins": (REAL, GENERATED),
            "cannot_judge": CANNOT_JUDGE,
            "max_comment": MAX_COMMENT,
        }
        return self._templates.get_template(template).render({**shared, **values})

    def _message(self, visit: Visit, changed: int | None) -> str | None:
        """That an answer was changed, and how; None if the record does not say so."""
        if changed is None or not 1 <= changed <= len(visit.steps):
            return None
        step = visit.steps[changed - 1]
        answers = visit.answers.get(step.image, [])
        if len(answers) < 2:
            return None
        before, after = (dict(_words(row.answer, visit.language)) for row in answers[-2:])
        what = ", ".join(f"{name}: {before[name]} → {after[name]}" for name in after if before[name] != after[name])
        kind, number, _ = step_name(visit, step)
        text = "changed_now_practice" if kind == "practice" else "changed_now"
        return TEXTS[visit.language][text].format(number=number, what=what)


def step_name(visit: Visit, step: Step) -> tuple[str, int, int]:
    """How a step is called: "practice" or "image", its number among these, and how many of them there are."""
    practice = sum(other.practice for other in visit.steps)
    if step.practice:
        return "practice", step.number, practice
    return "image", step.number - practice, len(visit.steps) - practice


def _as_form(answer: Answer) -> dict[str, str]:
    """A stored answer as the form's fields hold it."""
    return {name: CANNOT_JUDGE if value is None else str(value) for name, value in answer.items()}


def _words(answer: Answer, language: str) -> list[tuple[str, str]]:
    """A stored answer in words: the question, what was answered."""
    texts, labels = TEXTS[language], SCALE_LABELS[language]
    words = []
    for name in (*ITEMS, ORIGIN, CONFIDENCE, COMMENT):
        value = answer[name]
        if value is None:
            told = texts["cannot_judge"]
        elif name == ORIGIN:
            told = texts[value]
        elif name == COMMENT:
            told = value or "–"
        else:
            told = f"{value} {labels[name][value]}"
        words.append((texts[name].rstrip("?"), told))
    return words
