import json

import pandas as pd
import pytest
from pydantic import ValidationError

from rebase.datasets import RealDataset
from rebase.errors import RebaseError
from rebase.parameters import ContaminationParameters, MixParameters
from rebase.pipelines.cot import create_pipeline as cot
from rebase.pipelines.distil import create_pipeline as distil
from rebase.pipelines.mix import create_pipeline as mix_pipeline
from rebase.pipelines.mix.nodes import mix_examples
from rebase.pipelines.synthesize import create_pipeline as synthesize
from rebase.pipelines.transform import create_pipeline as transform
from rebase.records import EXAMPLE_COLUMNS
from tests.shipped import RAW, shipped_task


def examples(name, count, **more):
    line = dict.fromkeys(EXAMPLE_COLUMNS) | {"teacher": name, "fields": "{}", "answer": "yes"} | more
    return pd.DataFrame([line | {"example_id": f"{n}", "query": f"{name} asks {n}"} for n in range(count)])


def items(count):
    fields = [{"context": f"The owl of barn {n} sleeps all day long.", "question": "Where?"} for n in range(count)]
    return pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(count)],
            "fields": list(map(json.dumps, fields)),
            "query": ["\n\nQuestion: ".join(one.values()) for one in fields],
            "references": [json.dumps([f"barn {n}", "a barn"]) for n in range(count)],
            "dataset": "own.jsonl",
        }
    )


def mixed(task, sets, weights, real=0, protected=0, size=None):
    parameters = MixParameters.model_validate({"weights": weights, "size": size, "seed": 1})
    tables = [sets.get(f"{name}_examples", pd.DataFrame()) for name in ("reasoned", "synthesized", "distilled")]
    return mix_examples(task, *tables, items(real), items(protected), parameters, ContaminationParameters(ngram=13))


def test_origins_are_drawn_by_weight_and_kept_as_provenance(reading_task):
    sets = {
        "reasoned_examples": examples("rebase", 10, rationale="So."),
        "distilled_examples": examples("own", 9),
        "synthesized_examples": examples("unused", 9),
    }
    frame, summary = mixed(reading_task, sets, {"reasoned_examples": 2, "distilled_examples": 1})
    assert frame["origin"].value_counts().to_dict() == {"reasoned_examples": 10, "distilled_examples": 5}
    assert summary["origins"] == {"reasoned_examples": 10, "distilled_examples": 5}
    assert frame["example_id"].is_unique
    assert frame["example_id"].iloc[0] == "reasoned_examples/0"
    assert frame["rationale"].notna().sum() == 10
    assert (summary["in"], summary["kept"], summary["rejected"]) == (19, 15, {"not_drawn": 4})


def test_real_examples_are_screened_and_answered_by_people(reading_task):
    sets = {"reasoned_examples": examples("rebase", 3)}
    weights = {"reasoned_examples": 1, "real_examples": 1}
    frame, summary = mixed(reading_task, sets, weights, real=5, protected=2)
    real = frame[frame["origin"] == "real_examples"]
    assert list(real["answer"]) == ["barn 2", "barn 3", "barn 4"]
    assert set(real["teacher"]) == {"people"}
    assert set(real["dataset"]) == {"own.jsonl"}
    assert summary["rejected"] == {"contamination_exact": 2}
    assert frame["agreement"].isna().all()


def test_a_short_evaluation_item_is_no_real_example(reading_task):
    fields = [
        json.dumps({"context": "An owl.", "question": "Where?"}),
        json.dumps({"context": "A cat.", "question": "Where?"}),
    ]
    real = items(2).assign(fields=fields, query=["An owl.\n\nQuestion: Where?", "A cat.\n\nQuestion: Where?"])
    tables = [examples("rebase", 3), pd.DataFrame(), pd.DataFrame()]
    parameters = MixParameters(weights={"reasoned_examples": 1, "real_examples": 1}, size=None, seed=1)
    task = reading_task.model_copy(update={"query": "{context}\n\nQuestion: {question}"})
    _, summary = mix_examples(task, *tables, real, real[:1], parameters, ContaminationParameters(ngram=13))
    assert summary["rejected"]["equals_evaluation_item"] == 1


@pytest.mark.parametrize(
    ("name", "references", "answers", "rejected"),
    [
        ("word_problems", ["1,200", "$5.00", "-3.0"], ["1200", "5", "-3"], {}),
        ("word_problems", ["1/4", "1/3", "7"], ["0.25", "7"], {"not_a_number": 1}),
        ("news_topic", ["Sport", "none of these", "food"], ["sport", "food"], {"unknown_label": 1}),
    ],
)
def test_real_answers_have_the_form_of_the_task(name, references, answers, rejected):
    task = shipped_task(name)
    (field,) = task.query_fields
    real = items(3).assign(
        fields=[json.dumps({field: f"In town {n} a mill burned down."}) for n in range(3)],
        references=[json.dumps([reference]) for reference in references],
    )
    tables = [pd.DataFrame(), pd.DataFrame(), pd.DataFrame()]
    parameters = MixParameters(weights={"real_examples": 1}, size=None, seed=1)
    frame, summary = mix_examples(task, *tables, real, items(0), parameters, ContaminationParameters(ngram=13))
    assert sorted(frame["answer"]) == sorted(answers)
    assert summary["rejected"] == rejected


def test_real_rows_without_a_gold_answer_are_counted(tmp_path):
    file = tmp_path / "own.jsonl"
    rows = [{"context": f"The owl of barn {n} sleeps.", "question": "Who?", "answers": ["owl"][n:]} for n in range(3)]
    file.write_text("\n".join(map(json.dumps, rows)))
    real = RealDataset(str(RAW / "tasks"), "reading_qa", str(file)).load()
    parameters = MixParameters.model_validate({"weights": {"real_examples": 1}, "size": None, "seed": 1})
    empty = pd.DataFrame()
    frame, summary = mix_examples(
        shipped_task("reading_qa"), empty, empty, empty, real, items(1), parameters, ContaminationParameters(ngram=13)
    )
    assert len(frame) == 1
    assert (summary["in"], summary["kept"], summary["rejected"]) == (3, 1, {"no_gold": 2})


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("reasoned_examples", "transform and cot"),
        ("synthesized_examples", "pipeline synthesize"),
        ("distilled_examples", "pipeline distil"),
        ("real_examples", "real_source=FILE"),
    ],
)
def test_an_origin_without_examples_names_what_makes_them(reading_task, name, remedy):
    weights = {"reasoned_examples": 1, "synthesized_examples": 1, name: 1}
    sets = {origin: examples("x", 1) for origin in weights if origin != name}
    with pytest.raises(RebaseError, match=f"there are no {name} of task .*(?s:.)*{remedy}"):
        mixed(reading_task, sets, weights)


def test_an_unknown_origin_is_an_invalid_parameter():
    with pytest.raises(ValidationError, match="training_set"):
        MixParameters.model_validate({"weights": {"training_set": 1}, "size": None, "seed": 1})


def test_a_weight_of_zero_leaves_an_origin_out(reading_task):
    sets = {"reasoned_examples": examples("x", 3)}
    frame, summary = mixed(reading_task, sets, {"reasoned_examples": 1, "synthesized_examples": 0})
    assert len(frame) == 3
    assert summary["origins"] == {"reasoned_examples": 3}
    for weights in ({}, {"reasoned_examples": 0}, {"reasoned_examples": -1}):
        with pytest.raises(ValidationError, match="weights"):
            mixed(reading_task, sets, weights)


def test_what_a_run_makes_is_made_before_it_is_mixed():
    order = [node.short_name for node in (mix_pipeline() + synthesize() + distil() + transform() + cot()).nodes]
    made = {"synthesize_examples", "distil_inputs", "reason_examples"}
    assert made < set(order[: order.index("mix_examples")])
    assert order.index("transform_rows") < order.index("distil_inputs")
