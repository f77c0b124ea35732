from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.student.generation import generate
from rebase.student.handle import Student
from rebase.student.prefill import PrefilledBatch, group_prompts, prefill
from tests.tiny import make_student, tolerances

PASSAGES = [
    "The heron stands in the shallow water and waits for frogs. ",
    "By the mill another one stands since 1871. ",
    "A short one here, quite alone. ",
]
QUESTIONS = ["Who waits?", "What does it wait for, and where?", "When?"]
PROMPTS = [f"Answer. {passage}{question}" for question in QUESTIONS for passage in PASSAGES[:2]] + [
    f"Answer. {PASSAGES[2]}Is it?"
]


def test_logits_are_those_of_each_prompt_alone(any_architecture: Student) -> None:
    import torch

    with any_architecture.open() as (model, tokenizer), torch.inference_mode():
        for batch_size in (1, 2, 3, 7):
            seen = []
            for positions, _, logits in prefill(model, tokenizer, PROMPTS, batch_size, "prefill"):
                for position, row in zip(positions, logits, strict=True):
                    ids = tokenizer(PROMPTS[position], add_special_tokens=False, return_tensors="pt")["input_ids"]
                    torch.testing.assert_close(row, model(ids).logits[0, -1], **tolerances(any_architecture.dtype))
                seen += positions
            assert sorted(seen) == list(range(len(PROMPTS)))


def test_shared_passages_are_computed_once(student: Student) -> None:
    import torch

    with student.open() as (model, tokenizer), torch.inference_mode():
        token_counts: list[int] = []
        hook = model.model.embed_tokens.register_forward_hook(lambda *at: token_counts.append(at[1][0].numel()))
        list(prefill(model, tokenizer, PROMPTS, len(PROMPTS), "prefill"))
        hook.remove()
    assert sum(token_counts) < 0.9 * sum(map(len, PROMPTS))  # even with padding


def test_selecting_rows_does_not_change_the_batch(any_architecture: Student) -> None:
    """Relies on `DynamicCache`: copies of its layers must not share what `extend` changes."""
    import torch

    with any_architecture.open() as (model, _), torch.inference_mode():
        batch = PrefilledBatch(model)
        batch.extend([[5, 6, 7]])
        first = batch.select([0, 0]).extend([[8, 11], [9, 10]])
        again = batch.select([0, 0]).extend([[8, 11], [9, 10]])
        alone = batch.select([0]).extend([[9, 10]])
    assert torch.equal(first, again)
    torch.testing.assert_close(first[1:], alone, **tolerances(any_architecture.dtype))


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), max_size=12))
def test_each_prompt_is_in_one_group(prompts: list[list[int]]) -> None:
    groups = group_prompts(prompts)
    assert sorted(index for group in groups for index in group) == list(range(len(prompts)))
    for group in groups:
        assert len({tuple(prompts[index][:16]) for index in group}) == 1


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_text_beyond_the_learned_positions_is_an_error(tmp_path: Path, architecture: str) -> None:
    """A GPU would stop at an assertion without a message. Computed positions have no end."""
    fails = pytest.raises(RebaseError, match=r"reads at most 1024 tokens.*student\.model.*max_new_tokens")
    with make_student(tmp_path, architecture=architecture).open() as (model, tokenizer):
        model.generation_config.eos_token_id = tokenizer.eos_token_id = None  # no answer ends
        generate(model, tokenizer, ["a" * 1020], 5, 1, "fits")
        for prompt, count in (("a" * 1030, 1), ("a" * 1020, 6)):
            with fails if architecture == "gpt2" else nullcontext():
                generate(model, tokenizer, [prompt], count, 1, "longer")
