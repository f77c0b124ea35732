"""A provider on the loopback that speaks Anthropic's and OpenAI's API, their batches as well, and keeps a ledger.

In a test: ``with serving() as provider``. In a process of its own: ``python -m tests.teacher.server --help``.
"""

import argparse
import asyncio
import json
import math
import random
import re
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import count
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.teacher.schemas import example

KEY = "sk-right-key"
MODEL = "good-model"

ANTHROPIC, OPENAI = "anthropic", "openai"

#: Faults before any work is done, by the status that they get (0: no response at all). They are not billed.
EARLY = {"429": 429, "429 without retry-after": 429, "500": 500, "529": 529, "reset": 0, "hang": 0}
#: Faults of a response on its way, and of what the model says. They are billed.
BODY = ("half a body", "not JSON")
CONTENT = ("wrong schema", "refusal", "cut")
ALL = (*EARLY, *BODY, *CONTENT)


@dataclass(frozen=True)
class Answer:
    """What the server says to one request. ``text`` None lets it write one; ``body`` replaces the whole response."""

    text: str | None = None
    finish: str = "stop"  # stop, length or refusal
    status: int = 200
    message: str = "scripted error"
    body: bytes | None = None
    content_type: str = "application/json"
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One request, or one item of a batch, and the status that it got (0: the connection was dropped).

    ``request_id`` is the same for the same conversation, schema and sampling: billed twice means paid for twice.
    """

    path: str
    prompt: str
    status: int
    body: dict[str, Any]
    headers: dict[str, str]
    method: str = "POST"
    billed: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    request_id: str = ""
    batch: str | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Limits:
    """Allowances a minute, as token buckets that hold ``burst_seconds`` of them; None is no limit.

    OpenAI counts input and output in one bucket: there it allows the sum.
    """

    requests: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    burst_seconds: float = 60.0


@dataclass
class Faults:
    """Which share of the conversations go wrong, and how; each attempt draws anew.

    In a batch the kinds of ``CONTENT`` happen as often as outside. Of its items, further shares err, expire, or stand
    twice in the results. Of the calls about files and batches, ``batch_calls`` fail as ``EARLY`` or by half a body, and
    ``batch_lost`` of the batches are created without the client hearing of it.
    """

    share: float = 0.0
    seed: int = 0
    kinds: tuple[str, ...] = ALL
    retry_after: float = 1.0
    hang_seconds: float = 30.0
    batch_errored: float = 0.0
    batch_expired: float = 0.0
    batch_duplicated: float = 0.0
    batch_calls: float = 0.0
    batch_lost: float = 0.0
    generator: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.generator = random.Random(self.seed)

    def happens(self, share: float) -> bool:
        return share > 0 and self.generator.random() < share

    def draw(self) -> str | None:
        return self.generator.choice(self.kinds) if self.happens(self.share) else None

    def draw_for_call(self) -> str | None:
        return self.generator.choice((*EARLY, BODY[0])) if self.happens(self.batch_calls) else None


@dataclass
class Provider:
    """The server's address, its script by prompt (each answer is used once, then the default) and its ledger.

    ``answers`` "schema" writes texts that fit the request's schema and counts tokens by length; ``keep_bodies`` False
    keeps the ledger small.

    Other servers are imitated by ``rejects``, which gives the error (status 400) for a body that they do not accept,
    and ``shape``, which makes their completion of a usual one. In batches, ``bare_errors`` have no body, and the
    account's queue is full for ``full_queue`` more batches.
    """

    address: str
    script: dict[str, deque[Answer]] = field(default_factory=dict)
    default: Callable[[str], Answer] = lambda prompt: Answer()
    capabilities: dict[str, Any] | None = None
    needs_key: bool = True
    limits: Limits | None = None
    latency: Callable[[], float] = lambda: 0.0
    faults: Faults | None = None
    answers: Literal["echo", "schema"] = "echo"
    batch_seconds: float = 0.2
    rejects: Callable[[dict[str, Any]], str | None] = lambda body: None
    shape: Callable[[dict[str, Any]], dict[str, Any]] = lambda completion: completion
    bare_errors: bool = False
    full_queue: int = 0
    keep_bodies: bool = True
    ledger: list[Entry] = field(default_factory=list)
    max_concurrency: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, prompt: str, *answers: Answer) -> None:
        """Answer the prompt with these, in turn."""
        self.script[prompt] = deque(answers)

    def asked(self, prompt: str | None = None) -> list[Entry]:
        """The conversations asked for: all, or those of one prompt."""
        return [entry for entry in self.ledger if entry.prompt and prompt in (None, entry.prompt)]

    def billed(self) -> list[Entry]:
        """What costs money."""
        return [entry for entry in self.ledger if entry.billed]

    def next_answer(self, prompt: str) -> Answer:
        planned = self.script.get(prompt)
        return planned.popleft() if planned else self.default(prompt)


@dataclass(frozen=True)
class ParsedRequest:
    """The parts of a request of either API that the server reads."""

    body: dict[str, Any]
    prompt: str
    schema: dict[str, Any] | None
    request_id: str
    tokens: int

    @classmethod
    def read(cls, body: dict[str, Any]) -> "ParsedRequest":
        """Raises KeyError, IndexError, TypeError or AttributeError where the body is not what it should be."""
        messages = [{"role": turn["role"], "content": _plain(turn["content"])} for turn in body["messages"]]
        given = body.get("output_config", {}).get("format") or body.get("response_format", {}).get("json_schema") or {}
        system = _plain(body.get("system") or "")
        schema = given.get("schema") or _written_schema(system, *(turn["content"] for turn in messages))
        limit = body.get("max_tokens", body.get("max_completion_tokens"))
        identity = json.dumps([body["model"], system, messages, schema, limit, body.get("temperature")], sort_keys=True)
        size = len(system) + sum(len(turn["content"]) for turn in messages)
        digest = sha256(identity.encode()).hexdigest()
        return cls(body, messages[-1]["content"], schema, digest, max(1, size // 4))


def _plain(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def _written_schema(*texts: str) -> dict[str, Any] | None:
    """The schema in a prompt, where the parameters of the request have none."""
    found = [text for text in texts if "valid for this schema:\n" in text]
    return json.JSONDecoder().raw_decode(found[0].split("valid for this schema:\n")[1])[0] if found else None


class _Bucket:
    """A token bucket that fills continuously."""

    def __init__(self, per_minute: float, burst_seconds: float) -> None:
        self.limit, self.rate, self.capacity = per_minute, per_minute / 60, per_minute / 60 * burst_seconds
        self.level, self.time = self.capacity, time.monotonic()

    def wait(self, cost: float) -> float:
        """Seconds until there is as much; more than the bucket holds needs a full one."""
        now = time.monotonic()
        self.level, self.time = min(self.capacity, self.level + (now - self.time) * self.rate), now
        return max(0.0, (min(cost, self.capacity) - self.level) / self.rate)


class _Limiter:
    """The buckets of one API, and what its headers say of them."""

    def __init__(self, api: str, limits: Limits) -> None:
        tokens = (limits.input_tokens, limits.output_tokens)
        rates = {"requests": limits.requests, "input-tokens": tokens[0], "output-tokens": tokens[1]}
        if api == OPENAI:
            rates = {"requests": limits.requests, "tokens": sum(filter(None, tokens)) or None}
        self.api = api
        self.buckets = {name: _Bucket(rate, limits.burst_seconds) for name, rate in rates.items() if rate}

    def wait(self, tokens: int) -> float:
        costs = {"requests": 1, "input-tokens": tokens, "tokens": tokens, "output-tokens": 1}
        return max((bucket.wait(costs[name]) for name, bucket in self.buckets.items()), default=0.0)

    def take(self, **costs: float) -> None:
        for name, cost in costs.items():
            if bucket := self.buckets.get(name.replace("_", "-")):
                bucket.level -= cost

    def headers(self) -> dict[str, str]:
        found = {}
        for name, bucket in self.buckets.items():
            full = bucket.wait(bucket.capacity)
            if self.api == ANTHROPIC:
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(math.ceil(time.time() + full)))
                form, reset = f"anthropic-ratelimit-{name}-%s", at
            else:
                form, reset = f"x-ratelimit-%s-{name}", _duration(full)
            values = {"limit": int(bucket.limit), "remaining": max(0, int(bucket.level)), "reset": reset}
            found |= {form % part: str(value) for part, value in values.items()}
        return found


def _duration(seconds: float) -> str:
    """As OpenAI's headers have it: 6ms, 1.5s, 6m0s, 1h0m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 1000) / 1000, 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{round(rest, 3):g}s"


class _Dropped(Response):
    """No response: the connection is reset."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = receive.__self__.transport  # type: ignore[attr-defined]  # uvicorn's; ASGI itself cannot reset
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        await asyncio.sleep(0.001)  # for uvicorn to notice, else it sends a page of its own


class _Half(Response):
    """The first half of the body, after which the connection is closed: uvicorn does so when the end is missing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body[: len(self.body) // 2], "more_body": True})


@dataclass
class _Batch:
    """A batch of either API. ``ended``, ``results`` and ``failures`` are there when it is over."""

    id: str
    api: str
    items: list[tuple[str, ParsedRequest]]
    given: dict[str, Any]  # what OpenAI repeats of the call: input_file_id, endpoint, metadata, ...
    created: float = field(default_factory=time.time)
    ended: float | None = None
    invalid: list[dict[str, Any]] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)
    usage: Counter[str] = field(default_factory=Counter)
    results: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)


class _Server:
    """The endpoints."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.numbers = count(1)
        self.limiters: dict[tuple[str, Limits], _Limiter] = {}
        self.batches: dict[str, _Batch] = {}
        self.files: dict[str, tuple[dict[str, Any], bytes]] = {}

    def app(self) -> Starlette:
        guard = self.guarded
        return Starlette(
            routes=[
                Route("/v1/messages", self.converse, methods=["POST"]),
                Route("/v1/chat/completions", self.converse, methods=["POST"]),
                Route("/v1/models/{id}", self.model),
                Route("/v1/messages/batches", guard(self.create_message_batch), methods=["POST"]),
                Route("/v1/messages/batches", guard(self.list_batches)),
                Route("/v1/messages/batches/{id}", guard(self.retrieve_batch)),
                Route("/v1/messages/batches/{id}/results", guard(self.batch_results)),
                Route("/v1/files", guard(self.upload), methods=["POST"]),
                Route("/v1/files/{id}/content", guard(self.download)),
                Route("/v1/batches", guard(self.create_batch), methods=["POST"]),
                Route("/v1/batches", guard(self.list_batches)),
                Route("/v1/batches/{id}", guard(self.retrieve_batch)),
                Route("/_ledger", self.show_ledger),
                Route("/_state", self.show_state),
            ],
            exception_handlers={404: lambda request, _: _error(_api(request), 404, "no such page")},
        )

    # Conversations

    async def converse(self, request: Request) -> Response:
        """One request of either API, from its first check to its bill."""
        provider = self.provider
        try:
            asked = ParsedRequest.read(json.loads(await request.body()))
        except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
            return _error(_api(request), 400, f"not a request: {error!r}")
        with provider.lock:
            provider.max_concurrency += 1
            provider.most_in_flight = max(provider.most_in_flight, provider.max_concurrency)
        try:
            return await self.answer(request, asked)
        finally:
            with provider.lock:
                provider.max_concurrency -= 1

    async def answer(self, request: Request, asked: ParsedRequest) -> Response:
        provider, faults, api = self.provider, self.provider.faults, _api(request)
        limiter = self.limiter(api)
        if (denied := self.denied(request) or _unknown_model(api, asked)) is not None:
            return self.log(request, denied, asked)
        if limiter and (wait := limiter.wait(asked.tokens)):
            message = "This request would exceed your rate limit."
            headers = {"retry-after": str(max(1, math.ceil(wait))), **limiter.headers()}
            return self.log(request, _error(api, 429, message, headers), asked)
        if message := provider.rejects(asked.body):
            return self.log(request, _error(api, 400, message), asked)
        fault = faults.draw() if faults else None
        if fault in EARLY:
            return self.log(request, await self.fail_early(api, fault), asked, fault=fault)
        if limiter:
            limiter.take(requests=1, input_tokens=asked.tokens, tokens=asked.tokens)
        answer = provider.next_answer(asked.prompt)
        if seconds := provider.latency() + answer.seconds:
            await asyncio.sleep(seconds)

        if answer.status != 200:
            headers = limiter.headers() if limiter else {"retry-after-ms": "20"}  # both SDKs wait as they are told
            return self.log(request, _error(api, answer.status, answer.message, headers, answer), asked)
        content, usage = self.reply(api, asked, answer, fault)
        if limiter:
            limiter.take(output_tokens=usage[1], tokens=usage[1])
        body = answer.body if answer.body is not None else json.dumps(content).encode()
        if fault == "not JSON":
            body, answer = b"<html><body>Bad gateway</body></html>", replace(answer, content_type="text/html")
        make = _Half if fault == "half a body" else Response
        name = "request-id" if api == ANTHROPIC else "x-request-id"
        headers = {name: f"req_{next(self.numbers)}", **answer.headers} | (limiter.headers() if limiter else {})
        response = make(body, 200, headers, answer.content_type)
        return self.log(request, response, asked, usage=usage, fault=fault)

    def limiter(self, api: str) -> _Limiter | None:
        limits = self.provider.limits
        if limits is None:
            return None
        if (api, limits) not in self.limiters:
            self.limiters[api, limits] = _Limiter(api, limits)
        return self.limiters[api, limits]

    def denied(self, request: Request) -> Response | None:
        """An error where the key is wrong."""
        given = request.headers.get("authorization") or f"Bearer {request.headers.get('x-api-key')}"
        if not self.provider.needs_key or given == f"Bearer {KEY}":
            return None
        # Some servers repeat the key they were given: it must not reach the user's screen.
        return _error(_api(request), 401, f"invalid key: {given}")

    async def fail_early(self, api: str, fault: str) -> Response:
        faults, limiter = self.provider.faults, self.limiter(api)
        if fault == "hang":
            await asyncio.sleep(faults.hang_seconds)
        if not EARLY[fault]:
            return _Dropped(status_code=0)
        headers = {"retry-after": f"{faults.retry_after:g}"} if fault == "429" else {}
        return _error(api, EARLY[fault], f"fault: {fault}", headers | (limiter.headers() if limiter else {}))

    def reply(self, api: str, asked: ParsedRequest, answer: Answer, fault: str | None) -> tuple[dict[str, Any], tuple]:
        """The response's content, and the tokens in and out."""
        by_schema = self.provider.answers == "schema"
        text, finish = answer.text, answer.finish
        if text is None:
            written = example(asked.schema, asked.request_id) if by_schema and asked.schema else {"echo": asked.prompt}
            text = json.dumps(written)
        if fault == "wrong schema":
            text = '{"something": "else"}'
        elif fault == "refusal":
            text, finish = "I cannot help with that.", "refusal"
        elif fault == "cut":
            text, finish = text[: len(text) // 2], "length"
        usage = (asked.tokens, max(1, len(text) // 4)) if by_schema else (12, 5)
        form = _message if api == ANTHROPIC else _completion
        content = form(next(self.numbers), text, finish, usage, cached=0 if by_schema else 2)
        return self.provider.shape(content), usage

    def log(
        self,
        request: Request,
        response: Response,
        asked: ParsedRequest | None = None,
        usage: tuple[int, int] | None = None,
        batch: str | None = None,
        fault: str | None = None,
    ) -> Response:
        """Write the request into the ledger; it is billed where there is a usage."""
        keep = self.provider.keep_bodies
        body, prompt, digest = (asked.body, asked.prompt, asked.request_id) if asked else ({}, "", "")
        body, prompt, headers = (body, prompt, dict(request.headers)) if keep else ({}, "", {})
        tokens = usage or (0, 0)
        what = (request.scope["path"], prompt, response.status_code, body, headers, request.method)
        with self.provider.lock:
            self.provider.ledger.append(Entry(*what, usage is not None, *tokens, digest, batch, fault))
        return response

    # Batches

    def guarded(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint behind the check of the key, among faults, and with a line in the ledger for each call."""

        async def endpoint(request: Request) -> Response:
            faults, api = self.provider.faults, _api(request)
            if (denied := self.denied(request)) is not None:
                return self.log(request, denied)
            fault = faults.draw_for_call() if faults else None
            if fault in EARLY:
                return self.log(request, await self.fail_early(api, fault), fault=fault)
            try:
                response = await handle(request)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                response = _error(api, 404 if isinstance(error, _Missing) else 400, f"invalid request: {error!r}")
            if fault:
                response = _Half(response.body, response.status_code, dict(response.headers))
            return self.log(request, response, fault=fault)

        return endpoint

    async def create_message_batch(self, request: Request) -> Response:
        """Anthropic's: the requests come with the call."""
        items = [(item["custom_id"], ParsedRequest.read(item["params"])) for item in (await request.json())["requests"]]
        return self.start(_Batch(f"msgbatch_{next(self.numbers):06}", ANTHROPIC, items, {}))

    async def create_batch(self, request: Request) -> Response:
        """OpenAI's: the requests are in a file; what is wrong with it shows in the batch's state."""
        given = await request.json()
        if given["input_file_id"] not in self.files:
            raise ValueError(f"no file {given['input_file_id']}")
        batch = _Batch(f"batch_{next(self.numbers):06}", OPENAI, [], {"metadata": None, **given})
        if self.provider.full_queue:
            self.provider.full_queue -= 1
            message = (
                "Enqueued token limit reached. Please try again once some in_progress batches have been completed."
            )
            batch.invalid.append({"code": "token_limit_exceeded", "message": message})
            return self.start(batch)
        for number, line in enumerate(self.files[given["input_file_id"]][1].splitlines(), 1):
            item = json.loads(line)
            asked = ParsedRequest.read(item["body"])
            if asked.body["model"] == MODEL:
                batch.items.append((item["custom_id"], asked))
            else:
                code = "model_not_found"
                batch.invalid.append({"code": code, "line": number, "message": f"line {number}: {code}", "param": None})
        return self.start(batch)

    def start(self, batch: _Batch) -> Response:
        self.batches[batch.id] = batch
        if batch.invalid:
            batch.ended = batch.created
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(self.provider.batch_seconds, self.finish, batch)
        faults = self.provider.faults
        return _Dropped(status_code=0) if faults and faults.happens(faults.batch_lost) else self.show(batch)

    def finish(self, batch: _Batch) -> None:
        """Process the items, and bill those that succeed."""
        batch.ended = time.time()
        shuffle = random.Random(batch.id)
        for name, asked in batch.items:
            outcome, line = self.work_off(batch, name, asked)
            line = line or _expired(batch.api, name)
            batch.tally[outcome] += 1
            kept = batch.results if batch.api == ANTHROPIC or outcome == "succeeded" else batch.failures
            kept.append(line)
            if outcome == "succeeded" and self.provider.faults:
                kept.extend([line] * self.provider.faults.happens(self.provider.faults.batch_duplicated))
        for lines in (batch.results, batch.failures):
            shuffle.shuffle(lines)
        if batch.api == OPENAI:
            for kind, lines in (("output", batch.results), ("error", batch.failures)):
                if lines:
                    name = f"{batch.id}_{kind}.jsonl"
                    batch.given[f"{kind}_file_id"] = self.keep(name, "batch_output", _jsonl(lines))["id"]

    def work_off(self, batch: _Batch, name: str, asked: ParsedRequest) -> tuple[str, dict[str, Any] | None]:
        """One item's outcome, and its line in the results (None: there is nothing to say but the outcome)."""
        provider, faults = self.provider, self.provider.faults
        if faults and faults.happens(faults.batch_expired):
            return "expired", None
        answer = provider.next_answer(asked.prompt)
        if faults and faults.happens(faults.batch_errored):
            answer = Answer(status=500, message="fault: errored")
        if asked.body["model"] != MODEL:
            answer = Answer(status=404, message=f"model {asked.body['model']} not found")
        if message := provider.rejects(asked.body):
            answer = Answer(status=400, message=message)
        fault, usage = faults.draw() if faults else None, None
        fault = fault if fault in CONTENT else None
        if answer.status == 200:
            content, usage = self.reply(batch.api, asked, answer, fault)
            batch.usage.update(input_tokens=usage[0], output_tokens=usage[1])
        else:
            content = _complaint(batch.api, answer.status, answer.message)
        body, prompt = (asked.body, asked.prompt) if provider.keep_bodies else ({}, "")
        path = "/v1/messages" if batch.api == ANTHROPIC else "/v1/chat/completions"
        entry = Entry(path, prompt, answer.status, body, {}, "BATCH", usage is not None, *(usage or (0, 0)))
        with provider.lock:
            provider.ledger.append(replace(entry, request_id=asked.request_id, batch=batch.id, fault=fault))
        outcome = "succeeded" if usage else "errored"
        if batch.api == ANTHROPIC:
            return outcome, {"custom_id": name, "result": {"type": outcome, "message" if usage else "error": content}}
        number = next(self.numbers)
        response = {"status_code": answer.status, "request_id": f"req_{number}", "body": content}
        error = None
        if provider.bare_errors and not usage:
            error = response.pop("body")["error"]
        return outcome, {"id": f"batch_req_{number}", "custom_id": name, "response": response, "error": error}

    def find(self, request: Request) -> _Batch:
        batch = self.batches.get(request.path_params["id"])
        if batch is None or batch.api != _api(request):
            raise _Missing(f"no batch {request.path_params['id']}")
        return batch

    def show(self, batch: _Batch) -> Response:
        return JSONResponse(self.view(batch))

    def view(self, batch: _Batch) -> dict[str, Any]:
        return _message_batch_view(batch, self.provider) if batch.api == ANTHROPIC else _batch_view(batch)

    async def retrieve_batch(self, request: Request) -> Response:
        return self.show(self.find(request))

    async def batch_results(self, request: Request) -> Response:
        batch = self.find(request)
        if not batch.ended:
            raise _Missing("the batch has no results yet")
        return Response(_jsonl(batch.results), media_type="application/x-jsonl")

    async def list_batches(self, request: Request) -> Response:
        """A page of them, the newest first."""
        found = [batch for batch in reversed(self.batches.values()) if batch.api == _api(request)]
        names, query = [batch.id for batch in found], request.query_params
        limit = int(query.get("limit", 20))
        after = query.get("after_id") or query.get("after")
        begin = names.index(after) + 1 if after else 0
        end = begin + limit
        more = end < len(names)
        data = [self.view(batch) for batch in found[begin:end]]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        page = {"data": data, "has_more": more, "first_id": first, "last_id": last}
        return JSONResponse(page if _api(request) == ANTHROPIC else {"object": "list", **page})

    async def upload(self, request: Request) -> Response:
        """A multipart form with the fields ``purpose`` and ``file``."""
        body = await request.body()
        boundary = re.search(r'boundary="?([^";]+)', request.headers["content-type"])[1]
        form = {}
        for part in body.split(f"--{boundary}".encode())[1:-1]:
            head, _, content = part.partition(b"\r\n\r\n")
            form[re.search(rb'[; ]name="([^"]*)"', head)[1]] = head.decode(), content[:-2]
        head, content = form[b"file"]
        name = re.search(r'filename="([^"]*)"', head)
        return JSONResponse(self.keep(name[1] if name else "upload", form[b"purpose"][1].decode(), content))

    def keep(self, name: str, purpose: str, content: bytes) -> dict[str, Any]:
        about = {"id": f"file-{next(self.numbers):06}", "object": "file", "bytes": len(content), "filename": name}
        about |= {"created_at": int(time.time()), "purpose": purpose, "status": "processed", "expires_at": None}
        self.files[about["id"]] = about, content
        return about

    async def download(self, request: Request) -> Response:
        if request.path_params["id"] not in self.files:
            raise _Missing(f"no file {request.path_params['id']}")
        return Response(self.files[request.path_params["id"]][1], media_type="application/octet-stream")

    # The rest

    async def model(self, request: Request) -> Response:
        """Anthropic's model list, where there is one."""
        if self.provider.capabilities is None:
            return _error(ANTHROPIC, 404, "no such page")
        info = {"id": MODEL, "type": "model", "capabilities": self.provider.capabilities}
        return self.log(request, JSONResponse(info))

    async def show_ledger(self, request: Request) -> Response:
        with self.provider.lock:
            entries = list(self.provider.ledger)
        names = [name for name in Entry.__dataclass_fields__ if name not in ("body", "headers")]
        return JSONResponse([{name: getattr(entry, name) for name in names} for entry in entries])

    async def show_state(self, request: Request) -> Response:
        provider = self.provider
        conversations = [entry for entry in provider.ledger if entry.request_id]
        return JSONResponse(
            {
                "requests": len(conversations),
                "by_status": Counter(str(entry.status) for entry in conversations),
                "by_fault": Counter(entry.fault for entry in conversations if entry.fault),
                "max_concurrency": provider.max_concurrency,
                "most_in_flight": provider.most_in_flight,
                "billed": len(provider.billed()),
                "batches": len(self.batches),
            }
        )


class _Missing(LookupError):
    """Status 404."""


def _api(request: Request) -> str:
    return ANTHROPIC if request.scope["path"].startswith(("/v1/messages", "/v1/models")) else OPENAI


def _jsonl(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


_ANTHROPIC_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_OPENAI_ERRORS = {
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}


def _complaint(api: str, status: int, message: str) -> dict[str, Any]:
    if api == ANTHROPIC:
        kind = _ANTHROPIC_ERRORS.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}
    kind, code = _OPENAI_ERRORS.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _error(
    api: str, status: int, message: str, headers: dict[str, str] | None = None, answer: Answer | None = None
) -> Response:
    if answer and answer.body is not None:
        return Response(answer.body, status, headers, answer.content_type)
    return JSONResponse(_complaint(api, status, message), status, headers)


def _unknown_model(api: str, asked: ParsedRequest) -> Response | None:
    model = asked.body["model"]
    return None if model == MODEL else _error(api, 404, f"model {model} not found")


def _message(number: int, text: str, finish: str, usage: tuple[int, int], cached: int) -> dict[str, Any]:
    """A response of the Messages API; a thinking block stands first, as newer models send it."""
    reasons = {"stop": "end_turn", "length": "max_tokens", "refusal": "refusal"}
    refused = finish == "refusal"
    written = {"type": "text", "text": text}
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [] if refused else [{"type": "thinking", "thinking": "", "signature": "s"}, written],
        "stop_reason": reasons[finish],
        "stop_details": {"type": "refusal", "category": None, "explanation": text} if refused else None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": usage[0] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage[1],
        },
    }


def _completion(number: int, text: str, finish: str, usage: tuple[int, int], cached: int) -> dict[str, Any]:
    """A response of the chat completions API."""
    refused = finish == "refusal"
    message = {"role": "assistant", "content": None if refused else text, "refusal": text if refused else None}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "length" if finish == "length" else "stop"}],
        "usage": {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


def _expired(api: str, name: str) -> dict[str, Any]:
    """The line of an item that has expired."""
    if api == ANTHROPIC:
        return {"custom_id": name, "result": {"type": "expired"}}
    error = {"code": "batch_expired", "message": "This request could not be executed: batch_expired."}
    return {"id": f"batch_req_{name}", "custom_id": name, "response": None, "error": error}


def _message_batch_view(batch: _Batch, provider: Provider) -> dict[str, Any]:
    def stamp(at: float | None) -> str | None:
        return at and time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1e6):06}Z"

    outcomes = ("succeeded", "errored", "canceled", "expired")
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if batch.ended else "in_progress",
        "request_counts": {"processing": 0 if batch.ended else len(batch.items)}
        | {outcome: batch.tally[outcome] for outcome in outcomes},
        "created_at": stamp(batch.created),
        "expires_at": stamp(batch.created + 86400),
        "ended_at": stamp(batch.ended),
        "cancel_initiated_at": None,
        "archived_at": None,
        "results_url": f"{provider.address}/v1/messages/batches/{batch.id}/results" if batch.ended else None,
    }


def _batch_view(batch: _Batch) -> dict[str, Any]:
    status = "failed" if batch.invalid else "in_progress"
    if batch.ended and not batch.invalid:
        status = "expired" if batch.tally["expired"] else "completed"
    done, failed = batch.tally["succeeded"], batch.tally.total() - batch.tally["succeeded"]
    over = {f"{status}_at": int(batch.ended)} if batch.ended else {}
    usage = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {
        "output_file_id": None,
        "error_file_id": None,
        **batch.given,
        "id": batch.id,
        "object": "batch",
        "model": MODEL,
        "status": status,
        "errors": {"object": "list", "data": batch.invalid} if batch.invalid else None,
        "created_at": int(batch.created),
        "expires_at": int(batch.created) + 86400,
        **over,
        "request_counts": {"total": len(batch.items), "completed": done, "failed": failed},
        "usage": usage
        | {name: batch.usage[name] for name in ("input_tokens", "output_tokens")}
        | {"total_tokens": batch.usage.total()},
    }


# Running it


async def _serve(provider: Provider, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve until told to stop, and then drop what is in flight."""
    settings = {"log_config": None, "log_level": "critical", "access_log": False, "timeout_keep_alive": 600}
    app = _Server(provider).app()
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", proxy_headers=False, **settings))
    running = asyncio.create_task(server.serve([listener]))
    await stop.wait()
    running.cancel()
    for accepting in getattr(server, "servers", []):  # none where it was told to stop before it began
        accepting.close()
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await asyncio.sleep(0)  # the requests' tasks are cancelled when the runner closes
    listener.close()


def _listen(port: int = 0) -> tuple[socket.socket, str]:
    """The socket, which takes connections from now on, and its address."""
    listener = socket.create_server(("127.0.0.1", port), backlog=2048)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what it accepts inherits it
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def serving(**settings: Any) -> Iterator[Provider]:
    """Run the server on a free port until the end; ``settings`` are fields of the provider."""
    listener, address = _listen()
    provider = Provider(address, **settings)
    # Not uvloop, which can wait for ever when it is closed with connections open.
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(_serve(provider, listener, stop))

    thread = threading.Thread(target=run, name="provider", daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def main() -> None:
    """Serve in this process until it is killed; the first line of the output is the address."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--requests-per-minute", type=float)
    parser.add_argument("--input-tokens-per-minute", type=float)
    parser.add_argument("--output-tokens-per-minute", type=float)
    parser.add_argument("--burst-seconds", type=float, default=60.0)
    parser.add_argument("--latency", type=float, default=0.0, help="mean seconds of a reply")
    parser.add_argument("--latency-spread", type=float, default=0.0, help="sigma of log-normal latencies")
    parser.add_argument("--answers", choices=["echo", "schema"], default="echo")
    parser.add_argument("--batch-seconds", type=float, default=2.0)
    parser.add_argument("--keep-bodies", action="store_true", help="keep prompts in the ledger")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault-share", type=float, default=0.0)
    parser.add_argument("--fault-kinds", nargs="+", choices=ALL, default=ALL)
    for name, default in (("retry-after", 1.0), ("hang-seconds", 30.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    for name in ("errored", "expired", "duplicated", "calls", "lost"):
        parser.add_argument(f"--batch-{name}", type=float, default=0.0, help="a share: see Faults")
    given = parser.parse_args()

    allowed = (given.requests_per_minute, given.input_tokens_per_minute, given.output_tokens_per_minute)
    shares = {name: value for name, value in vars(given).items() if name in Faults.__dataclass_fields__}
    drawn = random.Random(given.seed)
    mean, spread = given.latency, given.latency_spread
    listener, address = _listen(given.port)
    provider = Provider(
        address,
        limits=Limits(*allowed, given.burst_seconds) if any(allowed) else None,
        latency=lambda: mean * drawn.lognormvariate(-spread * spread / 2, spread) if spread else mean,
        faults=Faults(given.fault_share, kinds=tuple(given.fault_kinds), **shares),
        answers=given.answers,
        batch_seconds=given.batch_seconds,
        keep_bodies=given.keep_bodies,
    )
    print(address, flush=True)
    with asyncio.Runner(loop_factory=uvicorn.Config(None, loop="auto").get_loop_factory()) as runner:
        runner.run(_serve(provider, listener, asyncio.Event()))


if __name__ == "__main__":
    main()
