import numpy as np
import pytest

from rebase.student.formatting import IGNORED, tokenize_example
from rebase.student.handle import Student, float32_logits
from rebase.student.likelihood import choose_labels
from tests.tiny import tolerances

LABELS = ("no", "n", "entailment", "yes, of course")
PROMPTS = [
    f"Is it so? {text}"
    for text in (
        "Owls sleep.",
        "The owl in the barn sleeps all day long. It does.",
        "The owl in the barn sleeps all day",
        "",
    )
]


def from_scratch(model, tokenizer, prompt: str, label: str) -> float:
    """The log-likelihood by the labels of the training loss, one text at a time."""
    import torch

    ids, labels = tokenize_example(tokenizer, prompt, label)
    with float32_logits(model):
        likelihoods = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(likelihoods[position - 1, token] for position, token in enumerate(labels) if token != IGNORED))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("labels", [LABELS, ("a", "b"), ("one",)])
def test_likelihoods_are_those_of_each_text_alone(
    any_architecture: Student, labels: tuple[str, ...], batch_size: int
) -> None:
    import torch

    with any_architecture.open() as (model, tokenizer), torch.inference_mode():
        expected = [[from_scratch(model, tokenizer, prompt, label) for label in labels] for prompt in PROMPTS]
        chosen, scores = choose_labels(model, tokenizer, PROMPTS, labels, batch_size, "labels")
    longest = max(map(len, labels)) + 1  # tokens of a label: each adds its own error to the sum
    bounds = tolerances(any_architecture.dtype)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=longest * bounds["atol"])
    assert chosen == [labels[index] for index in np.argmax(scores, axis=1)]
    if any_architecture.dtype == "float32":
        assert chosen == [labels[index] for index in np.argmax(expected, axis=1)]


def test_bfloat16_likelihoods_are_close_to_float32_and_not_rounded_to_8_bits(student: Student) -> None:
    from dataclasses import replace

    import torch

    scores = {}
    for dtype in ("float32", "bfloat16"):
        with replace(student, dtype=dtype).open() as (model, tokenizer):
            _, scores[dtype] = choose_labels(model, tokenizer, PROMPTS, LABELS, 4, "labels")
    np.testing.assert_allclose(scores["bfloat16"], scores["float32"], atol=15 * tolerances("bfloat16")["atol"])
    assert (torch.tensor(scores["bfloat16"]).bfloat16().double().numpy() != scores["bfloat16"]).mean() > 0.5


def test_no_prompts(student: Student) -> None:
    with student.open() as (model, tokenizer):
        chosen, scores = choose_labels(model, tokenizer, [], LABELS, 4, "none")
    assert chosen == []
    assert scores.shape == (0, 4)
