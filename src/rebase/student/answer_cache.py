"""A cache of generated answers, so that an interrupted evaluation resumes."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from rebase import __version__
from rebase.records import Adapter
from rebase.student.handle import Student

logger = logging.getLogger(__name__)

#: Called with the positions of prompts and the answers to them.
SaveAnswers = Callable[[Sequence[int], Sequence[str]], None]


def answers_file(student: Student, adapter: Adapter | None, max_new_tokens: int) -> Path:
    """The cache file for a student with an adapter, or without (None). Other weights have another file."""
    files = sorted(adapter.folder.glob("adapter_*")) if adapter else []
    weights = [(file.name, _digest(file.read_bytes())) for file in files]
    content = [__version__, student.identity(), weights, max_new_tokens]
    return student.workdir / "answers" / f"{_digest(json.dumps(content).encode())}.jsonl"


def complete_answers(
    file: Path, prompts: Sequence[str], generate: Callable[[Sequence[str], SaveAnswers], object]
) -> list[str]:
    """Answers to rendered prompts, in order: from the cache ``file``, or generated if it has none.

    ``generate`` gets each prompt without an answer once, and a function to call with every batch of answers. Each line
    of the file is the digest of a prompt and the answer; a truncated line is ignored.
    """
    answers = _read(file)
    digests = [_digest(prompt.encode("utf-8", "surrogatepass")) for prompt in prompts]
    missing = {digest: prompt for digest, prompt in zip(digests, prompts, strict=True) if digest not in answers}
    if missing:
        if cached_count := len(prompts) - len(missing):
            logger.info("%d of %d answers are cached in %s", cached_count, len(prompts), file)
        missing_digests = list(missing)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:

            def save(positions: Sequence[int], texts: Sequence[str]) -> None:
                batch = {missing_digests[position]: text for position, text in zip(positions, texts, strict=True)}
                answers.update(batch)
                # The newline comes first because the line before may be truncated.
                lines.write("".join(f"\n{json.dumps(answer)}" for answer in batch.items()))
                lines.flush()

            generate(list(missing.values()), save)
    return [answers[digest] for digest in digests]


def _read(file: Path) -> dict[str, str]:
    """The cached answers by digest of their prompt."""
    answers = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            digest, text = json.loads(line)
        except ValueError:
            continue
        answers[digest] = text
    return answers


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
