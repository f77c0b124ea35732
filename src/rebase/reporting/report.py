"""The run's report: one HTML page that needs nothing beside it, from whatever there is of a run."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rebase.datastore.sampling import systematic_positions
from rebase.generation.verification import one_sided
from rebase.records import Task
from rebase.reporting.console import STAGES
from rebase.reporting.diagnostics import (
    judge_against_scores,
    nearest_pairs,
    nearness,
    right_in_format,
    where_gains_come_from,
)
from rebase.reporting.plots import (
    plot_curves,
    plot_embedding_map,
    plot_loss,
    plot_nearness,
    plot_scores,
    plot_scores_of_rows,
    plot_sources,
)

# In their order: what a piece is made from stands before it.
_MADE_FROM = {
    "reasoned_examples": "retrieved",
    "diversity": "reasoned_examples",
    "training_log": "reasoned_examples",
    "predictions": "training_log",
    "scores": "predictions",
    "judge_scores": "predictions",
    "embedding_map": "reasoned_examples",
    "run_record": "scores",
    "comparison_scores": "reasoned_examples",
    "curves": "comparison_scores",
    "comparison": "curves",
}
# What stands beside what, to be compared, and is of the same settings only if it is not older.
_BESIDE = {"comparison_scores": "scores", "curves": "scores", "comparison": "scores"}
_SUMMARY = ("stage", "in", "kept", "rejected")
#: What the page of a whole run is made from beside the task, by the names in the catalog, with the columns or keys
#: that must be there: what lacks one is of another version, and counts as missing.
PIECES: dict[str, tuple[str, ...]] = {
    **{f"{stage}_summary": _SUMMARY for stage in STAGES},
    "retrieved": ("row_id", "dataset", "license", "row", "score", "score_dataset", "score_query", "score_answer"),
    "reasoned_examples": ("example_id", "query", "answer"),
    "teacher_usage": ("stage", "used", "responses", "cached", "dollars", "used_dollars", "estimated_requests_low"),
    "diversity": ("n", "distinct_share", "mean_cosine", "distinct_1", "distinct_2", "labels", "words"),
    "preflight": ("in", "kept", "steps", "epochs", "tokens", "tokens_with_loss", "padding_share", "examples"),
    "training_log": ("step", "loss"),
    "predictions": ("system", "item_id", "prompt", "raw_output", "extracted", "references"),
    "scores": ("n", "confidence", "systems", "differences"),
    "embedding_map": ("kind", "id", "dataset", "text", "x", "y", "cosine", "nearest_id"),
    "run_record": ("models", "versions", "parameters", "machine"),
}
#: The same, and what only some runs have.
ALL_PIECES = {
    **PIECES,
    "judge_scores": ("judge", "grades"),
    "comparison_scores": ("n", "confidence", "systems", "differences"),
    "comparison": ("system", "examples", "requests", "dollars"),
    "curves": ("training_set", "examples", "seed", "metric", "value", "low", "high"),
}

_SHOWN_AS_THEY_ARE = (
    "scores", "comparison_scores", "judge_scores", "diversity", "preflight", "run_record", "train_summary"
)  # fmt: skip
_TEMPLATE = "report.html.j2"
_SHOWN = 4
_LONG = 1200
_SOURCES = 30
_MARKED = re.compile("⟦(.*?)⟧", re.DOTALL)
_FEW_ITEMS, _FEW_EXAMPLES = 200, 100
#: What the stages count.
_UNITS = {
    "ingest": ("source rows", "rows"),
    "embed": ("cells", "with text"),
    "index": ("rows", "searchable"),
    "retrieve": ("rows seen", "rows that fit"),
    "transform": ("rows", "examples"),
    "cot": ("examples", "examples"),
    "train": ("examples", "trained on"),
    "evaluate": ("items", "answered"),
}
#: Each picture, by the piece it is drawn from; kedro-viz shows the same ones.
_PICTURES: dict[str, tuple[str, Callable[[Any], go.Figure]]] = {
    "scores": ("scores", plot_scores),
    "comparison": ("comparison_scores", plot_scores),
    "curves": ("curves", plot_curves),
    "sources": ("retrieved", plot_sources),
    "row_scores": ("retrieved", plot_scores_of_rows),
    "map": ("embedding_map", plot_embedding_map),
    "nearness": ("embedding_map", plot_nearness),
    "loss": ("training_log", plot_loss),
}


def write_report(task: Task, outdated: Sequence[str] = (), **pieces: Any) -> str:
    """The report as HTML. ``pieces`` are some of ``ALL_PIECES``, by their names; the ``outdated`` ones are marked.

    Any of them may be missing: the page says so and shows the rest. Every value is escaped, and the page's own policy
    forbids it to load anything.
    """
    from plotly.offline import get_plotlyjs

    given = {name: piece for name, piece in pieces.items() if len(piece) and set(ALL_PIECES[name]) <= set(piece)}
    environment = Environment(
        loader=PackageLoader("rebase.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "shorten": _shorten,
        "marked": _marked,
        "number": _number,
        "dollars": _dollars,
        "said": _said,
    }
    predictions, examples, retrieved = (given.get(name) for name in ("predictions", "reasoned_examples", "retrieved"))
    mapped, compared, metric = given.get("embedding_map"), given.get("comparison"), task.metrics[0]
    if predictions is not None and metric not in predictions:
        predictions = None  # of a task without gold answers, or of another version of the task
    return environment.get_template(_TEMPLATE).render(
        task=task,
        outdated=outdated,
        metric=metric,
        plotly=Markup(get_plotlyjs()),  # noqa: S704  # the library's own
        pictures={name: _picture(draw(given[piece])) for name, (piece, draw) in _PICTURES.items() if piece in given},
        stages=flow(given),
        sources=sources(retrieved, examples),
        examples=[] if examples is None else examples_with_rows(examples, retrieved),
        outcomes=None if predictions is None else won_and_lost(predictions, metric),
        formats=[] if predictions is None else right_in_format(task, predictions),
        gains=None if predictions is None else where_gains_come_from(task, predictions),
        judged=judge_against_scores(given.get("scores"), given.get("judge_scores"), metric),
        near=None if mapped is None else nearness(mapped),
        pairs=[] if mapped is None or examples is None else nearest_pairs(mapped, examples),
        usage=[] if "teacher_usage" not in given else given["teacher_usage"].to_dict("records"),
        limits=limits(given),
        # It has a line a system and metric.
        costs={} if compared is None else compared.drop_duplicates("system").set_index("system").to_dict("index"),
        luck={} if compared is None else over_seeds(compared),
        missing_names=[name for name in PIECES if name not in given],
        **{name: given.get(name) for name in _SHOWN_AS_THEY_ARE},
    )


def over_seeds(comparison: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """By system what ``seeds`` trainings gave: by metric the mean and the standard deviation. Only those of several."""
    several = comparison[comparison.get("seeds", pd.Series(0, index=comparison.index)) > 1]
    return {
        system: {"seeds": int(lines["seeds"].max()), "metrics": lines.set_index("metric").to_dict("index")}
        for system, lines in several.groupby("system", sort=False)
    }


def find_outdated(times: Mapping[str, float]) -> list[str]:
    """The pieces that are older than what they are made from, or stand beside: they are left from an earlier run.

    ``times`` are those at which the pieces that are there were written.
    """
    found: list[str] = []
    for name, source in _MADE_FROM.items():
        if {name, source} <= set(times) and (times[name] < times[source] or source in found):
            found.append(name)
    found += [
        name
        for name, other in _BESIDE.items()
        if name not in found and {name, other} <= set(times) and times[name] < times[other]
    ]
    return found


def flow(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages that there are summaries of, in their order, with what they count and what was paid."""
    found = [given[name] for stage in STAGES if (name := f"{stage}_summary") in given]
    return [
        {
            **said,
            "units": _UNITS[said["stage"]],
            "rejected": dict(sorted(said["rejected"].items(), key=lambda reason: -reason[1])),
            "share": 100 * said["kept"] / said["in"] if said["in"] else 0,
            "seconds": said.get("seconds"),
            "usage": said.get("usage") or {},
        }
        for said in found
    ]


def sources(retrieved: pd.DataFrame | None, examples: pd.DataFrame | None) -> list[dict[str, Any]]:
    """The datasets with their licenses: rows retrieved and examples made, most examples first; the rest as one."""
    frames = {"rows": retrieved, "examples": examples}
    counted = {
        name: frame.groupby(["dataset", "license"], dropna=False).size()
        for name, frame in frames.items()
        if frame is not None and {"dataset", "license"} <= set(frame)
    }
    if not counted:
        return []
    table = pd.DataFrame(counted).fillna(0).astype(int).reindex(columns=list(frames), fill_value=0)
    table = table.sort_values(["examples", "rows"], ascending=False, kind="stable").reset_index()
    shown = table.head(_SOURCES).to_dict("records")
    if len(rest := table[_SOURCES:]):
        shown.append({"dataset": f"{len(rest)} others", "license": "", **rest[list(frames)].sum().to_dict()})
    return shown


def examples_with_rows(examples: pd.DataFrame, retrieved: pd.DataFrame | None) -> list[dict[str, Any]]:
    """A few examples spread over the ranking, each with the row it was written from, and why that was retrieved.

    ``source`` has the row's cells as (column, value, what matched there); it is empty where the row is not at hand.
    """
    rows = {} if retrieved is None else retrieved.set_index("row_id").to_dict("index")
    ordered = examples.sort_values("rank") if "rank" in examples else examples
    chosen = ordered.iloc[systematic_positions(len(ordered), _SHOWN)]

    def source(row: Mapping[str, Any]) -> list[tuple[str, Any, list[str]]]:
        matched = [
            (row.get(f"{side}_column"), f"{words} {row[f'score_{side}']:.2f}")
            for side, words in (("query", "matches the queries"), ("answer", "matches the answers"))
            if row.get(f"score_{side}") is not None
        ]
        cells = json.loads(row["row"])
        return [(name, value, [told for column, told in matched if column == name]) for name, value in cells.items()]

    return [
        {**example, "row": row, "source": source(row) if row else []}
        for example in chosen.to_dict("records")
        for row in [rows.get(example.get("row_id"), {})]
    ]


def won_and_lost(predictions: pd.DataFrame, metric: str) -> dict[str, Any] | None:
    """How many items the expert scores higher on than the student, lower or the same, and a few of each.

    None where one of the two has not answered, or nothing is known of what is right.
    """
    student, expert = (
        predictions[predictions["system"] == system].set_index("item_id") for system in ("student", "expert")
    )
    both = expert.join(student[["raw_output", metric]], rsuffix="_student", how="inner")
    both = both.dropna(subset=[metric, f"{metric}_student"])
    if both.empty:
        return None
    gain = both[metric] - both[f"{metric}_student"]

    def items(frame: pd.DataFrame) -> list[dict[str, Any]]:
        return [
            {
                "prompt": line["prompt"],
                "answers": json.loads(line["references"]),
                "student": line["raw_output_student"],
                "expert": line["raw_output"],
            }
            for line in frame.iloc[systematic_positions(len(frame), _SHOWN)].to_dict("records")
        ]

    return {
        "won": items(both[gain > 0]),
        "lost": items(both[gain < 0]),
        "counts": {"won": int((gain > 0).sum()), "lost": int((gain < 0).sum()), "same": int((gain == 0).sum())},
    }


def limits(given: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the page."""
    said = []
    scores, examples, retrieved = (given.get(name) for name in ("scores", "reasoned_examples", "retrieved"))
    if scores and scores["n"] < _FEW_ITEMS:
        said.append(
            f"{scores['n']} evaluation items are few: the intervals are wide, and a difference must be large to show."
        )
    if examples is not None and len(examples) < _FEW_EXAMPLES:
        said.append(f"{len(examples)} training examples are few: another seed may give other scores.")
    labels = (given.get("diversity") or {}).get("labels")
    if labels and (doubt := one_sided(labels["counts"])):
        said.append(doubt)
    if left := given.get("evaluate_summary", {}).get("rejected", {}).get("over_limit"):
        said.append(f"{left:,} evaluation items were left out by evaluate.limit: the scores are of a sample.")
    if retrieved is not None and "license" in retrieved and (unknown := int((retrieved["license"] == "unknown").sum())):
        said.append(f"The license of {unknown:,} retrieved rows is unknown: look at their datasets before you publish.")
    said.append(
        "The examples were written by a model and checked by programs, not by people: what the teacher got wrong, the "
        "expert may have learned."
    )
    said.append(
        "Rows that share words with the evaluation set were removed before anything was written, by exact match and by "
        "n-grams; a paraphrase passes. How near the test is to the training data stands under Checks."
    )
    said.append("The intervals tell what chance in the items does, not what another seed or another teacher would do.")
    return said


def _picture(figure: go.Figure) -> dict[str, Any]:
    """A figure for the page, which titles it itself and gives it the colors of the reader's light."""
    title = figure.layout.title.text
    figure = go.Figure(figure).update_layout(title=None, template="none")
    # In a script element only "<" could end it.
    return {"title": title, "json": Markup(figure.to_json().replace("<", "\\u003c"))}  # noqa: S704


def _shorten(text: Any, limit: int = _LONG) -> str:
    text = str(text)
    return text if len(text) <= limit else f"{text[:limit]} …"


def _marked(text: str) -> Markup:
    """What stands between ⟦ and ⟧ as marked text; the rest as it is."""
    return Markup(_MARKED.sub(r"<mark>\1</mark>", str(escape(text))))  # noqa: S704


def _number(value: Any, digits: int = 0) -> str:
    """A number with its thousands apart; a dash for none."""
    return "–" if value is None or pd.isna(value) else f"{value:,.{digits}f}"


def _dollars(value: Any) -> str:
    """An amount of US dollars, small ones to a hundredth of a cent."""
    if value is None or pd.isna(value):
        return "no price"
    return f"${value:,.{2 if value >= 1 or value == 0 else 4}f}"


def _said(name: str) -> str:
    """A name from the data as words."""
    return name.replace("_", " ")
