"""A new task from an instruction and examples: what its file says is proposed from them, for a person to correct."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import yaml

from rebase.errors import RebaseError
from rebase.generation.filters.languages import task_language
from rebase.records import Task
from rebase.tasks.evaluation_items import make_evaluation_items, select_items
from rebase.tasks.source_rows import SourceRows
from rebase.tasks.task_files import to_yaml
from rebase.text import NUMBER, approximate_tokens, count_words, normalize

#: The examples that a new task shows to the teacher. Further ones become its evaluation items.
SHOWN_EXAMPLES = 3
#: Each type of answer with its usual metrics.
_METRICS = {
    "span": ["exact_match", "f1"],
    "label": ["accuracy"],
    "number": ["numeric_match"],
    "text": ["rouge_l"],
    "code": ["chrf"],
}
#: A field with this many words in each example is a text to read; `retrieve.min_passage_words` is the same.
_PASSAGE_WORDS = 25
#: Columns of evaluation items that are no fields, and options of `kedro ask`.
_RESERVED = frozenset({"id", "answers", "references", "task", "inputs", "to", "beside", "env", "help"})
_COMMENTS = {
    "query": "what the expert reads: the fields in braces, and the words around them",
    "passage": "the field that is copied from a row of the datastore; the teacher writes the others and the answer",
    "answer": "span (copied from the passage), label (list all labels), number, text or code",
    "metrics": "of exact_match, f1, accuracy, numeric_match, rouge_l, chrf",
    "cot": "the examples have a rationale: the expert reasons before it answers",
    "language": "of the examples; rows in other languages are rejected. any: none are",
    "evaluation": "items with answers that only measure the expert: one JSON object on each line, with these columns",
    "max_new_tokens": "the longest answer (with its rationale) in tokens",
}


def find_free(file: Path, overwrite: bool) -> None:
    """Raise RebaseError if there is a file that must not be overwritten."""
    if file.exists() and not overwrite:
        raise RebaseError(f"{file} exists. Choose another name, or replace it by --overwrite.")


def read_description(file: Path) -> dict[str, Any]:
    """Read a YAML or JSON file with ``instruction`` and ``examples``; each value is text, as it is written."""
    text = file.read_bytes()
    try:
        # YAML's own types would make a boolean of the answer `yes`, and cut the zeros of `007`.
        content = json.loads(text) if file.suffix == ".json" else yaml.BaseLoader(text).get_single_data()
    except (ValueError, yaml.YAMLError) as error:
        raise RebaseError(
            f"{file}: not valid {'JSON' if file.suffix == '.json' else 'YAML'} in UTF-8. {_one_line(error)}"
        ) from None
    if not isinstance(content, dict) or not {"instruction", "examples"} <= set(content):
        raise RebaseError(f"{file}: it must have `instruction`, a text, and `examples`, a list.")
    return content


def type_description() -> dict[str, Any]:
    """Ask for the instruction, the fields, and the examples."""
    instruction = click.prompt("The task, as an instruction to the expert")
    names = click.prompt("The fields of an input, separated by commas", default="text").replace(",", " ").split()
    _check_names(names, "The fields")
    examples: list[dict[str, str]] = []
    click.echo("Three examples, which the teacher gets to read:")
    with suppress(click.Abort):
        while len(examples) < SHOWN_EXAMPLES or click.confirm("Another example, to measure the expert?", default=True):
            examples.append({name: click.prompt(f"{len(examples) + 1}. {name}") for name in [*names, "answer"]})
    return {"instruction": instruction, "examples": examples}


def propose_task(
    description: Mapping[str, Any], name: str, evaluation: str, where: str
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The content of the file of task ``name``, and its evaluation items: the examples after the first three.

    ``description`` has ``instruction``, ``examples`` (each with all fields and ``answer``), and any other keys of a
    task file, which replace what is proposed. ``evaluation`` is the file of the items. Raises RebaseError, which begins
    with ``where``, if an example is incomplete or the task not valid.
    """
    examples = _check_examples(description["examples"], where)
    fields = [field for field in examples[0] if field not in ("answer", "rationale")]
    instruction, answers = _as_text(description["instruction"]), [example["answer"] for example in examples]
    spans = [field for field in fields if all(_occurs(example["answer"], example[field]) for example in examples)]
    answer = description.get("answer") or _answer_type(instruction, answers, bool(spans), len(fields))
    if isinstance(answer, str):
        answer = {"type": answer} | ({"labels": list(dict.fromkeys(answers))} if answer == "label" else {})
    kind = answer.get("type") if isinstance(answer, Mapping) else None
    texts = [field for field in fields if all(count_words(example[field]) >= _PASSAGE_WORDS for example in examples)]
    candidates = spans if kind == "span" else texts if len(fields) > 1 else []
    passage = max(candidates, key=lambda field: len(examples[0][field]), default=None)
    written = max(approximate_tokens(f"{example.get('rationale', '')} {example['answer']}") for example in examples)
    proposed = {
        "name": name,
        "version": 1,
        "instruction": instruction,
        "query": "\n\n".join(f"{field.replace('_', ' ').capitalize()}: {{{field}}}" for field in fields),
        **({"passage": passage} if passage else {}),
        "answer": answer,
        "metrics": _METRICS.get(str(kind), []),
        **({"cot": True} if "rationale" in examples[0] else {}),
        "examples": examples if "evaluation" in description else examples[:SHOWN_EXAMPLES],
        "evaluation": {"source": evaluation, "fields": {field: field for field in fields} | {"references": "answer"}},
        "max_new_tokens": 8 * (written // 4 + 2),
    }
    decided = ("name", "instruction", "answer", "examples")
    content = proposed | {key: value for key, value in description.items() if key not in decided}
    task = Task.parse(content, where)
    if "language" not in content and (language := task_language(task)):
        content["language"] = language
    items = examples[len(task.examples) :]
    if items:
        select_items(task, make_evaluation_items(task, SourceRows(items, f"{where}, evaluation items")), None)
    return content, items


def task_text(content: Mapping[str, Any]) -> str:
    """The text of a task file, with comments for whoever corrects it."""
    comments = {key: f"# {comment}\n" for key, comment in _COMMENTS.items()}
    return "".join(comments.get(key, "") + to_yaml({key: value}) for key, value in content.items())


def _answer_type(instruction: str, answers: Sequence[str], are_spans: bool, fields: int) -> str:
    is_letter = all(len(normalize(answer)) == 1 and not answer.isdigit() for answer in answers)
    if are_spans and fields > 1 and not is_letter:
        return "span"
    if all(NUMBER.fullmatch(answer) for answer in answers):
        return "number"
    if is_letter or len(set(answers)) < len(answers) or all(_occurs(answer, instruction) for answer in answers):
        return "label"
    return "span" if are_spans else "text"


def _check_examples(examples: Any, where: str) -> list[dict[str, str]]:
    """The examples as texts; a RebaseError names the first that is incomplete."""
    if not isinstance(examples, list) or not all(isinstance(example, dict) for example in examples):
        raise RebaseError(f"{where}: `examples` must be a list; each example has its fields and `answer`.")
    if len(examples) < SHOWN_EXAMPLES:
        raise RebaseError(f"{where}: {len(examples)} examples, but a task needs {SHOWN_EXAMPLES}. Add examples.")
    names = list(dict.fromkeys(name for example in examples for name in example))
    _check_names([name for name in names if name != "answer"], where)
    checked: list[dict[str, str]] = []
    for number, example in enumerate(examples, start=1):
        if missing := [name for name in dict.fromkeys([*names, "answer"]) if name not in example]:
            raise RebaseError(
                f"{where}, example {number}: there is no {' and no '.join(missing)}, only {', '.join(example)}. "
                "Each example has the same fields, and `answer`."
            )
        texts = {name: _as_text(example[name]) for name in names}
        if empty := [name for name, text in texts.items() if not text.strip()]:
            raise RebaseError(f"{where}, example {number}: {', '.join(empty)} is empty. Write a text.")
        if texts in checked:
            raise RebaseError(f"{where}, example {number} repeats example {checked.index(texts) + 1}. Write another.")
        checked.append(texts)
    return checked


def _check_names(names: Sequence[str], where: str) -> None:
    wrong = [name for name in names if not re.fullmatch(r"[A-Za-z_]\w*", str(name), re.ASCII) or name in _RESERVED]
    if wrong or not names:
        raise RebaseError(
            f"{where}: {', '.join(map(repr, wrong)) or 'nothing'} cannot be a field. Name each field of an input by a "
            f"word of letters, digits and _. These have another meaning: {', '.join(sorted(_RESERVED))}."
        )


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _occurs(answer: str, text: str) -> bool:
    return f" {normalize(answer)} " in f" {normalize(text)} "


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
