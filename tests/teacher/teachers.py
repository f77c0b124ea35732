"""Requests and teachers for tests."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from rebase.teacher.anthropic import AnthropicTeacher
from rebase.teacher.api import ApiTeacher
from rebase.teacher.openai import OpenAITeacher
from rebase.teacher.protocol import Failure, Message, Request, Response, Sampling
from tests.scripted import Scripted
from tests.teacher.server import KEY, MODEL

ROOT = Path(__file__).parents[2]
SCHEMA = {
    "type": "object",
    "properties": {"echo": {"type": "string", "maxLength": 40}},
    "required": ["echo"],
    "additionalProperties": False,
}


def request(prompt: str, **changes: object) -> Request:
    values = {"system": "Write.", "schema": SCHEMA, "sampling": Sampling(0.7, 100), **changes}
    return Request(messages=(Message("user", prompt),), **values)


def prompts(count: int) -> list[str]:
    return [f"prompt {number}" for number in range(count)]


def echo(prompt: str) -> str:
    """The response of the loopback provider, and of ``Echo``, to a prompt."""
    return json.dumps({"echo": prompt})


def texts_of(answers: list[Response | Failure]) -> list[str]:
    return [answer.text if isinstance(answer, Response) else answer.reason for answer in answers]


class Candid(Scripted):
    """Gets repair requests as well. Each response has 7 input and 3 output tokens."""

    async def generate(self, asked: Request) -> Response | Failure:
        self.requests.append(asked)
        await asyncio.sleep(0)
        key, text = asked.key(self.provider, self.model), self.say(asked)
        if isinstance(text, Exception):
            return Failure(key, str(text))
        text, finish = text if isinstance(text, tuple) else (text, "stop")
        return Response(key, text, finish, 7, 3)


class Echo(Candid):
    """Responds like the loopback provider, or fails if the prompt says so."""

    def __init__(self) -> None:
        super().__init__(self._say)

    def _say(self, asked: Request) -> str | Exception:
        prompt = asked.messages[0].content
        return ValueError("no luck") if "fail" in prompt else echo(prompt)

    @property
    def prompts(self) -> list[str]:
        return [asked.messages[0].content for asked in self.requests]


def hosted(kind: str, address: str, key: str | None = KEY) -> ApiTeacher:
    """The teacher for one of the two APIs of the loopback provider."""
    if kind == "anthropic":
        return AnthropicTeacher(MODEL, key, address)
    return OpenAITeacher(MODEL, key, f"{address}/v1")


def identity(kind: str, address: str) -> tuple[str, str, str]:
    """Provider, model and address of ``hosted``, as the cache has them."""
    teacher = hosted(kind, address)
    return teacher.provider, teacher.model, teacher.address


def cached_keys(path: Path) -> set[str]:
    """The keys in the file, as another process sees them; none while it is being created."""
    if not path.exists():
        return set()
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        try:
            return {key for (key,) in connection.execute("SELECT key FROM responses")}
        except sqlite3.OperationalError:
            return set()


def start(program: str, *arguments: str) -> "subprocess.Popen[str]":
    """Run a program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))},
    )
