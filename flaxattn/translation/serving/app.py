"""The routes: a page, and an endpoint that answers JSON with JSON."""

import contextlib
import dataclasses
import importlib.resources
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flaxattn.pages import style_of
from flaxattn.ranges import Range, check_fields
from flaxattn.translation.serving.batching import Batches, BusyError
from flaxattn.translation.serving.guard import COMMON, OF_EXPLORER, Guard
from flaxattn.translation.serving.model import MOST_TOGETHER, Question, Service

__all__ = ["Limits", "make_app"]

FILES = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript")}
FIELDS = {"texts", "n_best", "align"}
BYTES = 12  # of JSON for a character, at most: two escapes


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much may be asked."""

    max_characters: Annotated[int, Range(1, 1_000_000)] = 2000
    """Characters of one text."""
    max_texts: Annotated[int, Range(1, 10_000)] = 64
    """Texts of one request."""
    max_waiting: Annotated[int, Range(1, 1_000_000)] = 1024
    """Texts that wait or are translated at a time."""

    def __post_init__(self) -> None:
        check_fields(self)


def make_app(
    service: Service,
    limits: Limits = Limits(),
    *,
    host: str = "127.0.0.1",
    report: Callable[[str], None] = lambda text: None,
) -> Guard:
    """What a server such as uvicorn runs.

    Args:
      host: the name or address that it listens on.
      report: told of errors that are this program's own.
    """
    batches = Batches(service.answer, most_together=MOST_TOGETHER, most_waiting=limits.max_waiting)
    endpoints = _Endpoints(service, batches, limits, report)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with batches.answering():
            yield

    app = Starlette(
        routes=[
            *(Route(path, _file(*file), methods=["GET"]) for path, file in FILES.items()),
            Route(
                "/page.css", _always(style_of(__package__, "page.css"), "text/css"), methods=["GET"]
            ),
            Route("/health", endpoints.health, methods=["GET"]),
            Route("/translate", endpoints.translate, methods=["POST"]),
            Route("/explain", endpoints.explain, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _refused, BusyError: _busy},
        lifespan=lifespan,
    )
    return Guard(app, host)


class _Endpoints:
    """What each route does."""

    def __init__(
        self, service: Service, batches: Batches, limits: Limits, report: Callable[[str], None]
    ) -> None:
        self._service, self._batches, self._limits = service, batches, limits
        self._report = report

    async def health(self, request: Request) -> Response:
        """Says that it runs, how many texts wait or are translated, and what may be asked."""
        limits = dataclasses.asdict(self._limits) | {"max_n_best": self._service.most_best}
        told = {"status": "ready", "waiting": self._batches.waiting, "limits": limits}
        return JSONResponse(told)

    async def translate(self, request: Request) -> Response:
        """{"texts": [...]} -> {"translations": [[{"text", "score"}, ...], ...]}."""
        questions = self._questions(await self._body(request))
        found = await self._found(request, self._batches.ask(questions))
        return JSONResponse({"translations": found})

    async def explain(self, request: Request) -> Response:
        """The attention explorer, of one text."""
        text = self._text(request.query_params.get("text"), "text")
        asked = self._batches.alone(lambda: self._service.explain(text))
        found = await self._found(request, asked)
        if found is None:
            raise HTTPException(400, "text: is blank, or too long for its attention to be shown.")
        policy = {"content-security-policy": OF_EXPLORER + COMMON}
        return Response(found, media_type="text/html", headers=policy)

    async def _found(self, request: Request, asked: Awaitable[Any]) -> Any:
        """What the model gives; its failures are told here, and end nothing."""
        try:
            return await asked
        except BusyError:
            raise
        except Exception as error:
            self._report(f"{request.method} {request.url.path}: {type(error).__name__}: {error}")
            told = "translating failed; the output of the server says why."
            raise HTTPException(500, told) from error

    async def _body(self, request: Request) -> Any:
        """What the JSON holds."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which no other web site can send unasked
            raise HTTPException(415, f"content-type: is {kind!r}; expected application/json.")
        most = BYTES * self._limits.max_characters * self._limits.max_texts + 1000
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise HTTPException(413, f"the request has more than {most} bytes. Ask for less.")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"the request is no JSON: {error}") from error

    def _questions(self, body: Any) -> list[Question]:
        texts = body.get("texts") if isinstance(body, dict) else None
        if not isinstance(texts, list) or not texts:
            raise HTTPException(400, 'expected an object such as {"texts": ["A dog."]}.')
        if unknown := sorted(body.keys() - FIELDS):
            raise HTTPException(400, f"{unknown[0]}: is unknown; expected {sorted(FIELDS)}.")
        if len(texts) > (most := self._limits.max_texts):
            raise HTTPException(413, f"texts: are {len(texts)}; expected at most {most}.")
        n_best, align = body.get("n_best", 1), body.get("align", False)
        if type(n_best) is not int or not 1 <= n_best <= self._service.most_best:
            expected = f"a number from 1 to {self._service.most_best}"
            raise HTTPException(400, f"n_best: is {n_best!r}; expected {expected}.")
        if type(align) is not bool:
            raise HTTPException(400, f"align: is {align!r}; expected true or false.")
        named = ((f"texts[{i}]", text) for i, text in enumerate(texts))
        return [Question(self._text(text, name), n_best, align) for name, text in named]

    def _text(self, text: Any, name: str) -> str:
        most = self._limits.max_characters
        if not isinstance(text, str):
            raise HTTPException(400, f"{name}: expected a text.")
        if len(text) > most:
            raise HTTPException(
                413, f"{name}: has {len(text)} characters; expected at most {most}."
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise HTTPException(400, f"{name}: holds half a character.") from error
        return text


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error(status, getattr(error, "detail", ""))


async def _busy(request: Request, error: Exception) -> Response:
    return _error(503, str(error), {"retry-after": "1"})


def _error(status: int, told: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": told}, status_code=status, headers=headers)


def _file(name: str, kind: str) -> Callable[[Request], Response]:
    return _always(importlib.resources.files(__package__).joinpath(name).read_bytes(), kind)


def _always(content: bytes | str, kind: str) -> Callable[[Request], Response]:
    return lambda request: Response(content, media_type=kind)
