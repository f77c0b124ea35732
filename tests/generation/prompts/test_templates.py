from pathlib import Path

import pytest

from rebase.errors import RebaseError
from rebase.generation.prompts.requests import (
    transform_request,
)
from rebase.generation.prompts.templates import SolvePrompt, TransformPrompt, prompt_hash
from tests.generation.prompts.samples import PARAMETERS, READING, TOPIC, TRANSFORM, row
from tests.shipped import shipped_task


def test_the_hash_tells_prompts_and_tasks_apart():
    changed = TRANSFORM.model_copy(update={"system": TRANSFORM.system + " Please."})
    hashes = {prompt_hash(TRANSFORM, READING), prompt_hash(changed, READING), prompt_hash(TRANSFORM, TOPIC)}
    assert len(hashes) == 3
    assert prompt_hash(TRANSFORM, READING) == prompt_hash(TRANSFORM, shipped_task("reading_qa"))


def test_a_wrong_prompt_file_names_its_field():
    with pytest.raises(RebaseError, match=r"(?s)my\.yml.*sytem"):
        SolvePrompt.parse({"version": 1, "sytem": "x", "user": "y"}, Path("my.yml"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"user": "{data} {dat}"}, r"user: .*unknown: \{dat\}; known fields are \{data\}, \{cut\}, \{instruction\}"),
        ({"system": "{data}"}, r"system: .*unknown: \{data\}; known fields are \{instruction\}, \{fields\}"),
        ({"user": "{data}{}"}, r"user: .*unknown: \{\}; known"),
        ({"user": "{data.x}"}, r"user: .*unknown: \{data\.x\}; known"),
        ({"user": "{data!r:>9}"}, r"user: .*unknown: \{data!r:>9\}; known"),
        ({"user": '{data} like {"a": 1}'}, r"user: .*known fields.*a brace as such is written twice"),
        ({"user": "{data"}, r"user: .*'\}'.*known fields are \{data\}"),
        ({"user": "data}"}, r"user: .*Single '\}'.*known fields are \{data\}"),
        ({"user": "{cut}"}, r"user: .*missing: \{data\}.*known fields are"),
        ({"user": "{{data}}"}, r"user: .*missing: \{data\}"),
        ({"user": None}, r"user: "),
        ({"ask": {"version": 1, "system": "x", "user": "{answer}"}}, r"ask\.user: .*missing: \{sentence\}"),
        ({"solve": {"version": 1, "system": "x", "user": "{data}"}}, r"solve\.user: .*missing: \{query\}"),
        ({"check": {"version": 1, "system": "{query}", "user": "{query}"}}, r"check\.system: .*unknown: \{query\}"),
        ({"check": None}, r"check: "),
    ],
)
def test_a_template_that_cannot_be_filled_is_rejected(change, expected):
    with pytest.raises(RebaseError, match=rf"(?s)^my\.yml: .*{expected}"):
        TransformPrompt.parse(TRANSFORM.model_dump() | change, Path("my.yml"))


@pytest.mark.parametrize(("data", "expected"), [(None, "is empty"), ("{data}", "a str"), ([], "a list")])
def test_a_prompt_file_that_is_no_mapping(data, expected):
    with pytest.raises(RebaseError, match=rf"(?s)^my\.yml: .*{expected}.*version, system, user"):
        SolvePrompt.parse(data, Path("my.yml"))


def test_a_brace_as_such_is_written_twice():
    user = TRANSFORM.user + ' Like {{"a": 1}}.'
    prompt = TransformPrompt.parse(TRANSFORM.model_dump() | {"user": user}, Path("my.yml"))
    request = transform_request(TOPIC, row({"text": "x"}), prompt, PARAMETERS)
    assert request.messages[-1].content.endswith('{"a": 1}.')
