"""A teacher that answers by a rule instead of a model: the whole of what a provider must be."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from rebase.errors import RebaseError
from rebase.teacher.protocol import Failure, Request, Response


@dataclass(frozen=True)
class RuleTeacher:
    """Implements the teacher's protocol; ``rule`` makes the content of a response from a request."""

    model: str
    rule: Callable[[Request], dict[str, Any]]
    provider: ClassVar[str] = "rule"
    concurrency: int = 8  # requests that should wait at once, to keep it busy
    thinking_tokens: int = 0
    compute_dtype: None = None  # nothing is computed here

    def check(self) -> None:
        """Say what is missing, before any work."""
        if not self.model:
            raise RebaseError("teacher.model is empty: name the rule.")

    @asynccontextmanager
    async def open(self) -> AsyncIterator["RuleTeacher"]:
        """Here weights would be loaded, or connections opened, and released again after the ``yield``."""
        yield self

    async def generate(self, request: Request) -> Response | Failure:
        """One request, one response. What fails with this request alone is a Failure; what would with any, an error."""
        key = request.key(self.provider, self.model)
        try:
            text = json.dumps(self.rule(request))
        except KeyError as error:
            return Failure(key, f"the rule knows nothing of {error}")
        return Response(key, text, "stop", input_tokens=0, output_tokens=0)

    def stop(self) -> None:
        """Nothing is on its way that could be held back."""
