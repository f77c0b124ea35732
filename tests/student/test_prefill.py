from hypothesis import given
from hypothesis import strategies as st

from rebase.student.handle import Student
from rebase.student.prefill import PrefilledBatch, group_prompts, prefill
from tests.tiny import tolerances

PASSAGES = [
    "The heron stands in the shallow water and waits for frogs. ",
    "By the mill another one stands since 1871. ",
    "A short one here, quite alone. ",
]
QUESTIONS = ["Who waits?", "What does it wait for, and where?", "When?"]
PROMPTS = [f"Answer. {passage}{question}" for question in QUESTIONS for passage in PASSAGES[:2]] + [
    f"Answer. {PASSAGES[2]}Is it?"
]


def test_what_comes_next_is_as_if_each_prompt_was_read_alone(any_student: Student) -> None:
    import torch

    with any_student.open() as (model, tokenizer), torch.inference_mode():
        for batch_size in (1, 2, 3, 7):
            seen = []
            for numbers, _, logits in prefill(model, tokenizer, PROMPTS, batch_size, "read"):
                for number, found in zip(numbers, logits, strict=True):
                    ids = tokenizer(PROMPTS[number], add_special_tokens=False, return_tensors="pt")["input_ids"]
                    torch.testing.assert_close(found, model(ids).logits[0, -1], **tolerances(any_student.dtype))
                seen += numbers
            assert sorted(seen) == list(range(len(PROMPTS)))


def test_shared_passages_are_read_once(student: Student) -> None:
    import torch

    with student.open() as (model, tokenizer), torch.inference_mode():
        read: list[int] = []
        hook = model.model.embed_tokens.register_forward_hook(lambda *at: read.append(at[1][0].numel()))
        list(prefill(model, tokenizer, PROMPTS, len(PROMPTS), "read"))
        hook.remove()
    assert sum(read) < 0.9 * sum(map(len, PROMPTS))  # though it is padded


def test_selecting_leaves_the_batch_as_it_is(student: Student) -> None:
    import torch

    with student.open() as (model, _), torch.inference_mode():
        batch = PrefilledBatch(model)
        batch.extend([[5, 6, 7]])
        first = batch.select([0, 0]).extend([[8], [9, 10]])
        again = batch.select([0, 0]).extend([[8], [9, 10]])
        alone = batch.select([0]).extend([[9, 10]])
    assert torch.equal(first, again)
    torch.testing.assert_close(first[1:], alone)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), max_size=12))
def test_groups_part_the_prompts(prompts: list[list[int]]) -> None:
    groups = group_prompts(prompts)
    assert sorted(number for group in groups for number in group) == list(range(len(prompts)))
    for group in groups:
        assert len({tuple(prompts[number][:16]) for number in group}) == 1
