import re

import pytest
import yaml

from rebase.errors import RebaseError
from rebase.records import Task

GOOD = {
    "name": "topic",
    "version": 1,
    "instruction": "Name the topic.",
    "query": "{text}",
    "examples": [{"text": "The match ended 2:1.", "answer": "sport"}],
    "answer": {"type": "label", "labels": ["sport", "science"]},
    "metrics": ["accuracy"],
    "evaluation": {"source": "e.jsonl", "fields": {"text": "text", "references": "label"}},
}


def test_a_good_task_renders_its_query():
    task = Task.parse(GOOD | {"query": "{text}\n{{{text}}} {mood}", "examples": [
        {"text": "t", "mood": "m", "answer": "sport"}], "evaluation": {
        "source": "e", "fields": {"text": "text", "mood": "m", "references": "a"}}}, "topic.yml")  # fmt: skip
    assert task.query_fields == ("text", "mood")
    assert task.written_fields == ("text", "mood")
    # Braces in a value are text, not fields.
    assert task.render_query({"text": "{x}", "mood": "calm", "more": "unused"}) == "{x}\n{{x}} calm"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"instruction": ""}, "instruction"),
        ({"metrics": ["acuracy"]}, "metrics.0"),
        ({"metrics": ["accuracy", "numeric_match"]}, "`numeric_match` .* needs the type `number`, not `label`"),
        ({"color": "red"}, "color"),
        ({"version": "one"}, "version"),
        ({"name": "../topic"}, "name"),
        ({"examples": []}, "examples"),
        ({"examples": [{"text": "t"}]}, r"examples\[0\] must have exactly"),
        ({"examples": [{"text": "t", "answer": "art"}]}, r"examples\[0\]\.answer"),
        ({"answer": {"type": "label"}}, "labels"),
        ({"answer": {"type": "span", "labels": ["a"]}}, "labels"),
        ({"query": "no field"}, "query"),
        ({"query": "{text} {}"}, r"query: braces must hold .* others are \{\{ and \}\}"),
        ({"query": "{text:d}"}, "query: braces must hold"),
        ({"query": "{text!r}"}, "query: braces must hold"),
        ({"query": "{text.title} {text}"}, "query: braces must hold"),
        ({"query": "{text} {0}"}, "query: braces must hold"),
        ({"query": "{text} }"}, "query: Single '}'"),
        ({"passage": "context"}, "passage"),
        ({"cot": True}, "rationale"),
        ({"language": "eng"}, r"language: 'eng' is no language .* `any`\. Did you mean en\?"),
        ({"language": "iw"}, r"Allowed: .* he, "),
        ({"language": ""}, "language"),
        ({"evaluation": {"source": "e", "fields": {"text": "t"}}}, r"evaluation\.fields"),
        ({"evaluation": {"fields": {"text": "t", "references": "a"}}}, r"evaluation\.source"),
        (
            {"evaluation": {"source": "e", "fields": {"text": "t", "answers": "a"}}},
            "`evaluation.fields.answers` is now called `evaluation.fields.references`",
        ),
    ],
)
def test_a_wrong_field_is_named(change, named):
    with pytest.raises(RebaseError, match=named) as error:
        Task.parse(GOOD | change, "tasks/topic.yml")
    assert "tasks/topic.yml" in str(error.value)


@pytest.mark.parametrize(("code", "language"), [("de", "de"), ("nb", "no"), ("any", "any"), (None, None)])
def test_a_language_is_one_that_rows_can_have(code, language):
    assert Task.parse(GOOD | {"language": code}, "topic.yml").language == language


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_a_file_that_is_no_mapping_is_rejected(content):
    with pytest.raises(
        RebaseError, match=r"not a valid task\.\n  the file: must be a mapping of fields \(NAME: VALUE\)$"
    ):
        Task.parse(content, "topic.yml")


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (
            "answer: {type: label, labels: [yes, 'no']}",
            ["answer.labels.0: .*, not True as YAML .*: write it in quotes"],
        ),
        (
            "examples: [{text: 2026-01-31, answer: 1}]",
            ["examples.0.text: .* 2026-01-31 as", "examples.0.answer: .* 1 as"],
        ),
        ("metrics: [acuracy]", ["metrics.0: .* 'rouge_l', not 'acuracy'"]),
        ("metrics: []", ["metrics: .* at least 1 item"]),
        ("answer: label", [r"answer: must be a mapping of fields \(NAME: VALUE\)"]),
    ],
)
def test_each_wrong_value_is_one_line(change, problems):
    """A list is not too short because its items are wrong."""
    with pytest.raises(RebaseError) as error:
        Task.parse(GOOD | yaml.safe_load(change), "topic.yml")
    _, *lines = str(error.value).splitlines()
    assert len(lines) == len(problems), lines
    assert all(map(re.search, problems, lines)), lines


def typed_task(answer_type, answer, **fields):
    example = {"text": "The mill at Orb was built of oak.", "question": "Of what?", "answer": answer}
    columns = {"text": "text", "question": "question", "references": "answer"}
    task = GOOD | {"query": "{text} {question}", "passage": "text", "examples": [example], "metrics": ["exact_match"]}
    return task | {"answer": {"type": answer_type} | fields, "evaluation": {"source": "e.jsonl", "fields": columns}}


@pytest.mark.parametrize(
    ("written", "number"), [("1,200", "1200"), ("-1,234,567.50", "-1234567.50"), ("14", "14"), ("0.5", "0.5")]
)
def test_number_examples_lose_their_separators(written, number):
    assert Task.parse(typed_task("number", written), "sums.yml").examples[0]["answer"] == number


@pytest.mark.parametrize(
    ("answer_type", "answer", "problem"),
    [
        ("number", "many", "'many' is not a number"),
        ("number", "$5", r"'\$5' is not a number"),
        ("number", "1,20", "'1,20' is not a number"),
        ("span", "elm", "'elm' does not occur in `text`"),
        ("span", "oa", "'oa' does not occur"),
        ("text", " ", "is empty"),
        ("code", "", "is empty"),
    ],
)
def test_an_example_whose_answer_does_not_fit_the_type_is_rejected(answer_type, answer, problem):
    with pytest.raises(RebaseError, match=rf"t.yml: not a valid task.\n.*examples\[0\]\.answer {problem}"):
        Task.parse(typed_task(answer_type, answer), "t.yml")


@pytest.mark.parametrize(("answer_type", "answer"), [("span", "built of Oak"), ("text", "elm"), ("code", "x = 1\n")])
def test_an_example_whose_answer_fits_the_type_is_kept_as_written(answer_type, answer):
    assert Task.parse(typed_task(answer_type, answer), "t.yml").examples[0]["answer"] == answer
