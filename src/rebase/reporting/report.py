"""The report: one self-contained HTML page about a complete or partial run."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rebase.datastore.sampling import systematic_positions
from rebase.generation.verification import one_sided
from rebase.records import PEOPLE, Task
from rebase.reporting import diagnostics, plots
from rebase.reporting.console import STAGES
from rebase.reporting.reasons import REASONS
from rebase.student.answering import FEW_SHOT
from rebase.tasks.verdict import GRADED, LENIENT, MIN_ITEMS, format_p, is_clear

#: Tables of rejected rows and examples, which may be empty.
LISTED = ("examples_rejected", "reasoning_rejected")
_SUMMARY = ("stage", "in", "kept", "rejected")
#: The catalog entries that the page of a complete run shows, with required columns or keys: an entry without them is
#: of another version of rebase and counts as missing.
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
#: All entries that the page can show; some are optional.
ALL_PIECES = {
    **PIECES,
    "mappings": (
        "dataset",
        "config",
        "state",
        "detail",
        "mapping",
        "rows",
        "used",
        "agreement",
        "low",
        "high",
        "requests",
        "dollars",
    ),
    "judge_scores": ("judge", "grades"),
    **dict.fromkeys(LISTED, ("row_id", "dataset", "rank", "reason", "detail", "text")),
    "evaluation_items": ("item_id", "query"),
    "comparison_scores": ("n", "confidence", "systems", "differences"),
    "comparison": ("system", "examples", "requests", "dollars"),
    "curves": ("training_set", "examples", "seed", "metric", "value", "low", "high"),
}

_SHOWN_UNCHANGED = (
    "scores", "comparison_scores", "judge_scores", "diversity", "preflight", "run_record", "train_summary"
)  # fmt: skip
_TEMPLATE = "report.html.j2"
#: Examples and answers shown, characters of a text, and datasets in the table of sources.
_SHOWN, _LONG, _SOURCES = 4, 1200, 30
#: Lines of the lists of examples and answers, at most.
_LISTED = 1000
#: Characters of a text on one line.
_LINE = 110
#: The form of a run's version, as Kedro writes it.
_VERSION_FORMAT = "%Y-%m-%dT%H.%M.%S.%fZ"
_MARKED = re.compile("⟦(.*?)⟧", re.DOTALL)
_FEW_ITEMS, _FEW_EXAMPLES = 200, 100
#: What each stage takes in and keeps.
_UNITS = {
    "ingest": ("source rows", "rows"),
    "embed": ("cells", "with text"),
    "index": ("rows", "searchable"),
    "retrieve": ("rows seen", "rows that fit"),
    "map": ("rows", "examples"),
    "transform": ("rows", "examples"),
    "cot": ("examples", "examples"),
    "train": ("examples", "trained on"),
    "evaluate": ("items", "answered"),
}
#: Each picture, with the piece that it shows; kedro-viz shows the same pictures.
_PICTURES: dict[str, tuple[str, Callable[[Any], go.Figure]]] = {
    "scores": ("scores", plots.plot_scores),
    "comparison": ("comparison_scores", plots.plot_scores),
    "curves": ("curves", plots.plot_curves),
    "sources": ("retrieved", plots.plot_sources),
    "row_scores": ("retrieved", plots.plot_scores_of_rows),
    "map": ("embedding_map", plots.plot_embedding_map),
    "nearness": ("embedding_map", plots.plot_nearness),
    "loss": ("training_log", plots.plot_loss),
}


def write_report(task: Task, outdated: Sequence[str] = (), **pieces: Any) -> str:
    """Render the report as HTML from some of ``ALL_PIECES``; the page lists missing and ``outdated`` pieces.

    Every value is escaped, and the page's content security policy forbids it to load anything.
    """
    from plotly.offline import get_plotlyjs

    given = {name: piece for name, piece in pieces.items() if len(piece) and set(ALL_PIECES[name]) <= set(piece)}
    predictions, examples, retrieved, mapped, compared = (
        given.get(name) for name in ("predictions", "reasoned_examples", "retrieved", "embedding_map", "comparison")
    )
    metric = task.metrics[0]
    if predictions is not None and metric not in predictions:
        predictions = None  # a task without references, or another version of the task
    item_count = 0 if predictions is None else predictions["item_id"].nunique()
    return render_page(
        _TEMPLATE,
        task=task,
        lenient=LENIENT,
        min_items=MIN_ITEMS,
        few_items=item_count if item_count < MIN_ITEMS else 0,
        outdated=outdated,
        metric=metric,
        plotly=Markup(get_plotlyjs()),  # noqa: S704  # the library's own
        pictures={name: _picture(draw(given[piece])) for name, (piece, draw) in _PICTURES.items() if piece in given},
        stages=flow(given),
        sources=sources(retrieved, examples),
        examples=[] if examples is None else examples_with_rows(examples, retrieved),
        listed=list_examples(given),
        reasons=REASONS,
        made=describe_run(given),
        outcomes=None if predictions is None else compare_answers(task, predictions, given.get("evaluation_items")),
        formats=[] if predictions is None else diagnostics.right_in_format(task, predictions),
        gains=None if predictions is None else diagnostics.where_gains_come_from(task, predictions),
        judged=diagnostics.judge_against_scores(given.get("scores"), given.get("judge_scores"), metric),
        near=None if mapped is None else diagnostics.nearness(mapped),
        pairs=[] if mapped is None or examples is None else diagnostics.nearest_pairs(mapped, examples),
        mappings=[] if "mappings" not in given else given["mappings"].to_dict("records"),
        usage=[] if "teacher_usage" not in given else given["teacher_usage"].to_dict("records"),
        limits=limits(given),
        # The table has a line for each system and metric.
        costs={} if compared is None else compared.drop_duplicates("system").set_index("system").to_dict("index"),
        seed_variance={} if compared is None else seed_variance(compared),
        missing_names=[name for name in PIECES if name not in given],
        **{name: given.get(name) for name in _SHOWN_UNCHANGED},
    )


def render_page(template: str, **values: Any) -> str:
    """Fill a template of this package; every value is escaped."""
    environment = Environment(
        loader=PackageLoader("rebase.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"shorten": _shorten, "marked": _marked, "number": _number, "dollars": _dollars}
    environment.filters |= {"ending": _ending, "p_value": format_p}
    environment.tests["clear"] = is_clear
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    return environment.get_template(template).render(**values)


def seed_variance(comparison: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The mean and standard deviation over training seeds, by system and metric; only of several trainings."""
    several = comparison[comparison.get("seeds", pd.Series(0, index=comparison.index)) > 1]
    return {
        system: {"seeds": int(lines["seeds"].max()), "metrics": lines.set_index("metric").to_dict("index")}
        for system, lines in several.groupby("system", sort=False)
    }


def flow(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The summaries of the stages, in order, with their units, the share they kept and their usage."""
    summaries = [given[name] for stage in STAGES if (name := f"{stage}_summary") in given]
    summaries = [summary for summary in summaries if summary["in"] or summary["stage"] != "map"]
    return [
        {
            "seconds": None,
            **summary,
            "units": _UNITS[summary["stage"]],
            "rejected": dict(sorted(summary["rejected"].items(), key=lambda reason: -reason[1])),
            "share": 100 * summary["kept"] / summary["in"] if summary["in"] else 0,
            "usage": summary.get("usage") or {},
        }
        for summary in summaries
    ]


def sources(retrieved: pd.DataFrame | None, examples: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Rows retrieved and examples made from each dataset and license, most examples first; small ones combined."""
    counted = {
        name: frame.groupby(["dataset", "license"], dropna=False).size()
        for name, frame in (("rows", retrieved), ("examples", examples))
        if frame is not None and {"dataset", "license"} <= set(frame)
    }
    if not counted:
        return []
    table = pd.DataFrame(counted, columns=["rows", "examples"]).fillna(0).astype(int)
    table = table.sort_values(["examples", "rows"], ascending=False, kind="stable").reset_index()
    shown = table.head(_SOURCES).to_dict("records")
    if len(rest := table[_SOURCES:]):
        shown.append({"dataset": f"{len(rest)} others", "license": "", **rest[["rows", "examples"]].sum().to_dict()})
    return shown


def examples_with_rows(examples: pd.DataFrame, retrieved: pd.DataFrame | None) -> list[dict[str, Any]]:
    """A few examples across the ranking, each with its source row.

    ``source`` lists the row's cells as (column, value, matches in this cell); it is empty without the row.
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
        return [(name, value, [match for column, match in matched if column == name]) for name, value in cells.items()]

    return [
        {**example, "row": row, "source": source(row) if row else []}
        for example in chosen.to_dict("records")
        for row in [rows.get(example.get("row_id"), {})]
    ]


def list_examples(given: Mapping[str, Any]) -> dict[str, Any]:
    """All examples, kept and rejected, each with its row: ``lines``, ``reasons`` and the number ``left_out``.

    A line has ``reason`` (kept, or why it was rejected), ``detail``, ``dataset``, ``row_id``, ``rank``, ``text`` (query
    and answer, or the response that was rejected) and ``row``.
    """
    columns = ["reason", "detail", "dataset", "row_id", "rank", "text"]
    kept = given.get("reasoned_examples", pd.DataFrame(columns=["query", "answer"]))
    tables = [kept.assign(reason="kept", text=kept["query"] + "\n→ " + kept["answer"].astype(str))]
    tables += [given[name] for name in LISTED if name in given]
    table = pd.concat([table.reindex(columns=columns).astype(object) for table in tables], ignore_index=True)
    rows = given["retrieved"].set_index("row_id")["row"].to_dict() if "retrieved" in given else {}
    shown = table.where(table.notna(), "").head(_LISTED)
    return {
        "lines": shown.assign(row=[rows.get(row_id, "") for row_id in shown["row_id"]]).to_dict("records"),
        "reasons": table["reason"].value_counts().to_dict(),
        "left_out": len(table) - len(shown),
    }


def describe_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was made, and when: ``run`` (its version), ``date``, ``teacher`` and ``student``; None where unknown."""
    run = given.get("scores", {}).get("run") or None
    models = given.get("run_record", {}).get("models", {})
    return {
        "run": run,
        "date": run and datetime.strptime(run, _VERSION_FORMAT).strftime("%-d %B %Y, %H:%M UTC"),
        "teacher": models.get("teacher") or given.get("transform_summary", {}).get("teacher"),
        "student": models.get("student") or given.get("train_summary", {}).get("base_model"),
    }


def compare_answers(task: Task, predictions: pd.DataFrame, items: pd.DataFrame | None) -> dict[str, Any] | None:
    """The items by what training changed in the first metric, with their ``counts``, and a few of each.

    ``won`` and ``lost`` have a higher or a lower score of the expert than of the student, ``wrong`` and ``right`` the
    same, below 1 and 1. ``still_wrong`` are all items below 1, ``lines`` the items as a table. The queries are those of
    the evaluation ``items``, else the prompts. None without answers of both, or without references.
    """
    metric = task.metrics[0]
    pairs = diagnostics.pair_answers(predictions, metric, "raw_output", *({LENIENT} & set(predictions)))
    if pairs.empty:
        return None
    gain = (pairs[metric] - pairs[f"{metric}_student"]).to_numpy()
    few_shot = predictions[predictions["system"] == FEW_SHOT].set_index("item_id")["raw_output"]
    queries = pairs["prompt"] if items is None else items.set_index("item_id")["query"].reindex(pairs.index)
    pairs = pairs.assign(
        query=queries.fillna(pairs["prompt"]),
        answers=pairs["references"].map(json.loads),
        student=pairs["raw_output_student"],
        few_shot=few_shot.reindex(pairs.index),
        expert=pairs["raw_output"],
        outcome=np.select([gain > 0, gain < 0, pairs[metric] < 1], ["won", "lost", "wrong"], "right"),
    )
    still_wrong = pairs[pairs[metric] < 1].sort_values(metric, kind="stable")
    if task.metrics[0] in GRADED:
        still_wrong = still_wrong.head(_SHOWN)

    def few(frame: pd.DataFrame) -> list[dict[str, Any]]:
        return frame.iloc[systematic_positions(len(frame), _SHOWN)].to_dict("records")

    counts = pairs["outcome"].value_counts()
    return {
        "won": few(pairs[gain > 0]),
        "lost": few(pairs[gain < 0]),
        "still_wrong": few(still_wrong),
        "wrong_count": int((pairs[metric] < 1).sum()),
        "counts": {outcome: int(counts.get(outcome, 0)) for outcome in ("won", "lost", "wrong", "right")},
        "lines": pairs.reset_index().head(_LISTED).to_dict("records"),
        "left_out": max(0, len(pairs) - _LISTED),
    }


def limits(given: Mapping[str, Any]) -> list[str]:
    """The limits of the results, as sentences."""
    sentences = []
    scores, examples, retrieved = (given.get(name) for name in ("scores", "reasoned_examples", "retrieved"))
    if scores and scores["n"] < _FEW_ITEMS:
        sentences.append(
            f"{scores['n']} evaluation items are few: the intervals are wide, and only large differences show."
        )
    if examples is not None and len(examples) < _FEW_EXAMPLES:
        sentences.append(f"{len(examples)} training examples are few: another seed may give other scores.")
    labels = (given.get("diversity") or {}).get("labels")
    if labels and (doubt := one_sided(labels["counts"])):
        sentences.append(doubt)
    if left := given.get("evaluate_summary", {}).get("rejected", {}).get("over_limit"):
        sentences.append(f"{left:,} evaluation items were left out by evaluate.limit: the scores are of a sample.")
    if retrieved is not None and (unknown := int((retrieved["license"] == "unknown").sum())):
        sentences.append(
            f"The license of {unknown:,} retrieved rows is unknown: check their datasets before you publish."
        )
    mapped = 0
    if examples is not None and "mapping_id" in examples:
        mapped = int((examples["mapping_id"].notna() & (examples["teacher"] == PEOPLE)).sum())
    if mapped:
        sentences.append(f"{mapped} training examples have the labels of their datasets: read the mappings.")
    if examples is None or mapped < len(examples):
        sentences.append(
            "The examples were written by a model and checked by programs, not by people: what the teacher got wrong, "
            "the expert may have learned."
        )
    return [
        *sentences,
        "Rows that share words with the evaluation set were rejected before the teacher saw them, by exact match and "
        "by n-grams; a paraphrase passes. Diagnostics shows how near the evaluation items are to the training data.",
        "The intervals show the effect of sampling items, not that of another seed or another teacher.",
    ]


def _picture(figure: go.Figure) -> dict[str, Any]:
    """A figure for the page, which adds its own title and colors."""
    title = figure.layout.title.text
    figure = go.Figure(figure).update_layout(title=None, template="none")
    # Only "<" could end the script element.
    return {"title": title, "json": Markup(figure.to_json().replace("<", "\\u003c"))}  # noqa: S704


def _shorten(text: Any, limit: int = _LONG) -> str:
    text = str(text)
    return text if len(text) <= limit else f"{text[:limit]} …"


def _ending(text: Any) -> str:
    """The last words of a text, on one line: there a query has its question."""
    text = " ".join(str(text).split())
    return text if len(text) <= _LINE else f"… {text[-_LINE:].partition(' ')[2]}"


def _marked(text: str) -> Markup:
    """The text as HTML, with the parts between ⟦ and ⟧ marked."""
    return Markup(_MARKED.sub(r"<mark>\1</mark>", str(escape(text))))  # noqa: S704


def _number(value: Any, digits: int = 0) -> str:
    """A number with thousands separators; a dash if it is missing."""
    return "–" if value is None or pd.isna(value) else f"{value:,.{digits}f}"


def _dollars(value: Any) -> str:
    """An amount of US dollars, small amounts to a hundredth of a cent."""
    if value is None or pd.isna(value):
        return "no price"
    return f"${value:,.{2 if value >= 1 or value == 0 else 4}f}"
