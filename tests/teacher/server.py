"""A provider on the loopback: speaks the Messages API and the chat completions API, by script, and keeps a ledger."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-right-key"
MODEL = "good-model"


@dataclass(frozen=True)
class Answer:
    """What the server says to one request. ``text`` None echoes the prompt as JSON; ``body`` replaces it all."""

    text: str | None = None
    finish: str = "stop"  # stop, length or refusal
    status: int = 200
    message: str = "scripted error"
    body: bytes | None = None
    content_type: str = "application/json"
    seconds: float = 0.0


@dataclass(frozen=True)
class Entry:
    """One request in the ledger, and the status that it got."""

    path: str
    prompt: str
    status: int
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Provider:
    """The server's address, its script by prompt (each answer is used once, then the default) and its ledger."""

    address: str
    script: dict[str, deque[Answer]] = field(default_factory=dict)
    default: Callable[[str], Answer] = lambda prompt: Answer()
    capabilities: dict[str, Any] | None = None
    needs_key: bool = True
    ledger: list[Entry] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, prompt: str, *answers: Answer) -> None:
        """Answer the prompt with these, in turn."""
        self.script[prompt] = deque(answers)

    def asked(self, prompt: str | None = None) -> list[Entry]:
        """The conversations asked for: all, or those of one prompt."""
        return [entry for entry in self.ledger if entry.prompt and prompt in (None, entry.prompt)]


@contextmanager
def serving() -> Iterator[Provider]:
    """Run the server on a free port until the end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.provider = Provider(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.provider
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Say nothing: the ledger has it."""

    def do_GET(self) -> None:
        """Anthropic's model list, where there is one."""
        provider: Provider = self.server.provider
        if provider.capabilities is None or not self.path.startswith("/v1/models/"):
            self._say(404, _error("no such page"))
            return
        info = {"id": MODEL, "type": "model", "capabilities": provider.capabilities}
        provider.ledger.append(Entry(self.path, "", 200, {}, dict(self.headers)))
        self._say(200, info)

    def do_POST(self) -> None:
        """A conversation."""
        provider: Provider = self.server.provider
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with provider.lock:
            provider.in_flight += 1
            provider.most_in_flight = max(provider.most_in_flight, provider.in_flight)
            planned = provider.script.get(prompt)
            answer = planned.popleft() if planned else provider.default(prompt)
        if provider.needs_key and self.headers.get("Authorization") != f"Bearer {KEY}":
            # Some servers repeat the key they were given: it must not reach the user's screen.
            answer = Answer(status=401, message=f"invalid key: {self.headers.get('Authorization')}")
        elif body["model"] != MODEL:
            answer = Answer(status=404, message=f"model {body['model']} not found")
        time.sleep(answer.seconds)
        with provider.lock:
            provider.in_flight -= 1
            provider.ledger.append(Entry(self.path, prompt, answer.status, body, dict(self.headers)))
        if answer.body is not None:
            self._send(answer.status, answer.body, answer.content_type)
        elif answer.status != 200:
            self._say(answer.status, _error(answer.message))
        else:
            text = json.dumps({"echo": prompt}) if answer.text is None else answer.text
            form = _message if self.path == "/v1/messages" else _completion
            self._say(200, form(text, answer.finish))

    def _say(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, content: bytes, content_type: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After-Ms", "20")  # both SDKs wait as long as the server asks
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed: some tests do that


def _error(message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": "some_error", "message": message, "code": None, "param": None}}


def _message(text: str, finish: str) -> dict[str, Any]:
    """A response of the Messages API; a thinking block stands first, as newer models send it."""
    reasons = {"stop": "end_turn", "length": "max_tokens", "refusal": "refusal"}
    refused = finish == "refusal"
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": []
        if refused
        else [{"type": "thinking", "thinking": "", "signature": "s"}, {"type": "text", "text": text}],
        "stop_reason": reasons[finish],
        "stop_details": {"type": "refusal", "category": None, "explanation": text} if refused else None,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 2, "output_tokens": 5},
    }


def _completion(text: str, finish: str) -> dict[str, Any]:
    """A response of the chat completions API."""
    refused = finish == "refusal"
    message = {"role": "assistant", "content": None if refused else text, "refusal": text if refused else None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "length" if finish == "length" else "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17},
    }
