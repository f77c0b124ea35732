from dataclasses import replace
from pathlib import Path

import pytest

from rebase.student.generation import generate
from rebase.student.handle import Student
from tests.tiny import ARCHITECTURES, make_student, tolerances

PROMPTS = [
    "Where?",
    "A much longer prompt about herons, trees and rivers.",
    "Who",
    "In which year was it?",
    "Yes or no?",
]

SHARED = [f"Answer the question. {prompt}" for prompt in PROMPTS]


def generate_alone(model, tokenizer, prompt: str) -> str:
    """Generate with transformers alone: no batch, no padding, no shared prefix."""
    import torch

    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("prompts", [PROMPTS, SHARED, ["Same?", "Same?"]])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_batches_generate_what_single_prompts_generate(student: Student, prompts: list[str], batch_size: int) -> None:
    with student.open() as (model, tokenizer):
        alone = [generate_alone(model, tokenizer, prompt) for prompt in prompts]
        together = generate(model, tokenizer, prompts, 8, batch_size, "together")
    assert together == alone
    assert len(set(alone)) >= min(2, len(set(prompts)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_architecture_generates_in_batches_what_it_generates_alone(tmp_path: Path, architecture: str) -> None:
    with make_student(tmp_path, architecture=architecture).open() as (model, tokenizer):
        alone = [generate_alone(model, tokenizer, prompt) for prompt in SHARED]
        assert generate(model, tokenizer, SHARED, 8, 5, "together") == alone


def test_text_ends_with_the_turn(student: Student) -> None:
    import torch

    with student.open() as (model, tokenizer):
        # A head that always predicts the end of the turn.
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.weight[tokenizer.eos_token_id] = 1.0
            model.model.norm.weight.copy_(model.model.norm.weight.abs())
            model.model.norm.register_forward_hook(lambda module, inputs, output: output.abs())
        assert generate(model, tokenizer, PROMPTS, 8, 5, "ends") == [""] * len(PROMPTS)


def test_bfloat16_generates_the_same_or_an_equally_likely_token(student: Student) -> None:
    """If a batch generates another token than the prompt alone, both are equally likely within 8 bits."""
    import torch

    with replace(student, dtype="bfloat16").open() as (model, tokenizer):
        together = generate(model, tokenizer, PROMPTS, 8, len(PROMPTS), "together")
        for prompt, text in zip(PROMPTS, together, strict=True):
            alone = generate_alone(model, tokenizer, prompt)
            if text == alone:
                continue
            same = next(end for end in range(len(text) + 1) if text[: end + 1] != alone[: end + 1])
            ids = tokenizer(prompt + alone[:same], add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                best = model(ids).logits[0, -1].float().topk(2).values
            assert best[0] - best[1] <= tolerances("bfloat16")["atol"]


def test_no_prompts(student: Student) -> None:
    with student.open() as (model, tokenizer):
        assert generate(model, tokenizer, [], 8, 4, "none") == []


def test_rows_that_end_leave_the_batch(student: Student) -> None:
    import torch

    with student.open() as (model, tokenizer):
        alone = [set(tokenizer(generate_alone(model, tokenizer, prompt))["input_ids"]) for prompt in PROMPTS]
        # A token that some answers have, but not all, ends the turn from now on.
        end = min(set.union(*alone) - set.intersection(*alone))
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
        rows: list[int] = []
        with torch.inference_mode():
            hook = model.register_forward_pre_hook(
                lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
            )
            together = generate(model, tokenizer, PROMPTS, 8, len(PROMPTS), "together")
            hook.remove()
        assert together == [generate(model, tokenizer, [prompt], 8, 1, "alone")[0] for prompt in PROMPTS]
    assert min(rows[1:]) < len(PROMPTS)
