"""What the student wrote, kept as it is written: an evaluation that was killed goes on where it was."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from rebase import __version__
from rebase.records import Adapter
from rebase.student.handle import Student

logger = logging.getLogger(__name__)

#: Called with the places of prompts, and what was written after each of them.
Keep = Callable[[Sequence[int], Sequence[str]], None]


def answers_file(student: Student, adapter: Adapter | None, max_new_tokens: int) -> Path:
    """Where the answers of a student lie, alone (None) or with an adapter: other weights have another file."""
    weights = (
        [(file.name, _digest(file.read_bytes())) for file in sorted(adapter.folder.glob("adapter_*"))]
        if adapter
        else []
    )
    content = [__version__, student.identity(), weights, max_new_tokens]
    return student.workdir / "answers" / f"{_digest(json.dumps(content).encode())}.jsonl"


def keep_answers(file: Path, prompts: Sequence[str], write: Callable[[Sequence[str], Keep], object]) -> list[str]:
    """The answers to rendered prompts, in their order: those in the ``file``, and of the others what is written.

    ``write`` gets those without an answer, each once, and ``keep``, to be called whenever some are answered. The file
    has a line an answer: the prompt's digest and the text. A line that was cut short is written anew.
    """
    known = _read(file)
    digests = [_digest(prompt.encode("utf-8", "surrogatepass")) for prompt in prompts]
    left = {digest: prompt for digest, prompt in zip(digests, prompts, strict=True) if digest not in known}
    places = list(left)
    if not left:
        return [known[digest] for digest in digests]
    if done := len(prompts) - len(left):
        logger.info("%d of %d answers are kept from before, in %s", done, len(prompts), file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:

        def keep(numbers: Sequence[int], texts: Sequence[str]) -> None:
            written = {places[number]: text for number, text in zip(numbers, texts, strict=True)}
            known.update(written)
            # The newline is first, for a line before it that was cut short.
            lines.write("".join(f"\n{json.dumps(answer)}" for answer in written.items()))
            lines.flush()

        write(list(left.values()), keep)
    return [known[digest] for digest in digests]


def _read(file: Path) -> dict[str, str]:
    """The answers by their prompts' digests."""
    known = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            digest, text = json.loads(line)
        except ValueError:
            continue
        known[digest] = text
    return known


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
