"""The served student over HTTP, with a server that has the needed part of the completions API."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rebase.errors import RebaseError
from rebase.student.served import generate_served


class Server:
    """Answers with the prompt in capitals, earlier prompts later; returns each ``failing`` status once."""

    def __init__(self, failing: tuple[int, ...] = ()) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._failing = list(failing)
        self._now = 0

    async def complete(self, request: Request) -> JSONResponse:
        body = await request.json()
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        await asyncio.sleep(0.05 / (1 + len(self.bodies)))
        self._now -= 1
        if self._failing:
            return JSONResponse({"error": {"message": "busy"}}, self._failing.pop(), {"retry-after-ms": "1"})
        if body["model"] != "expert":
            return JSONResponse({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
        self.bodies.append(body)
        choice = {"index": 0, "text": f" {body['prompt'].upper()}\n", "finish_reason": "stop", "logprobs": None}
        return JSONResponse(
            {"id": "c", "object": "text_completion", "created": 0, "model": "expert", "choices": [choice]}
        )


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """The server's address."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[Route("/v1/completions", server.complete, methods=["POST"])])
    runner = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    thread = threading.Thread(target=runner.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        runner.should_exit = True
        thread.join()
        listener.close()


def test_texts_are_in_order_and_prompts_are_sent_unchanged() -> None:
    server, prompts = Server(), [f"<s>prompt {number}\n" for number in range(12)]
    with serving(server) as address:
        texts = generate_served(address, "expert", prompts, 7, 4, "served")
    assert texts == [prompt.strip().upper() for prompt in prompts]
    assert server.most_at_once == 4
    assert sorted(body["prompt"] for body in server.bodies) == sorted(prompts)
    sent = {"model": "expert", "max_tokens": 7, "temperature": 0, "add_special_tokens": False}
    assert all(sent.items() <= body.items() for body in server.bodies)


def test_a_busy_server_gets_the_request_again() -> None:
    with serving(Server(failing=(503, 429))) as address:
        assert generate_served(address, "expert", ["a", "b"], 7, 2, "served") == ["A", "B"]


def test_an_unknown_model_is_named() -> None:
    with serving(Server()) as address, pytest.raises(RebaseError, match=r"'novice'.*does not exist[^§]*--lora-modules"):
        generate_served(address, "novice", ["a", "b"], 7, 2, "served")


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rebase.student.served.RETRIES", 0)
    with pytest.raises(RebaseError, match=r"cannot be reached at http://127.0.0.1:9/v1: [^§]*vllm serve"):
        generate_served("http://127.0.0.1:9/v1", "expert", ["a"], 7, 2, "served")


def test_no_prompts() -> None:
    assert generate_served("http://127.0.0.1:9/v1", "expert", [], 7, 2, "served") == []
