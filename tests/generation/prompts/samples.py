"""Tasks, prompts and rows for the tests of prompts."""

import json

from rebase.parameters import TransformParameters
from tests.shipped import shipped_prompt, shipped_task

TRANSFORM = shipped_prompt("transform")

SAMPLING = {"temperature": 0.5, "max_tokens": 50}

PARAMETERS = TransformParameters.model_validate(
    {"max_examples": 5, "max_row_tokens": 60, "guided": True, "consistency_filter": True, "sampling": SAMPLING}
)

READING, TOPIC, SUMS = shipped_task("reading_qa"), shipped_task("news_topic"), shipped_task("word_problems")


def row(cells, dataset="notes", passage=None, query_column=None):
    return {
        "row_id": "notes/0", "dataset": dataset, "config": "default", "row": json.dumps(cells), "passage": passage,
        "query_column": query_column, "answer_column": None,
    }  # fmt: skip
