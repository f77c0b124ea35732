import numpy as np
import pandas as pd

from rebase.reporting.plots import plot_embedding_map, plot_nearness, plot_scores, plot_scores_of_rows, plot_sources


def test_scores_carry_their_intervals() -> None:
    cell = {"value": 30.0, "low": 20.0, "high": 45.0}
    figure = plot_scores(
        {"task": "t", "n": 60, "confidence": 0.95, "systems": {"student": {"f1": cell}, "expert": {"f1": cell}}}
    )
    assert [bar.name for bar in figure.data] == ["student", "expert"]
    assert list(figure.data[0].y) == [30.0]
    assert list(figure.data[0].error_y.array) == [15.0]
    assert list(figure.data[0].error_y.arrayminus) == [10.0]


def test_sources_count_rows() -> None:
    figure = plot_sources(pd.DataFrame({"dataset": ["a", "b", "a"]}))
    assert dict(zip(figure.data[0].y, figure.data[0].x, strict=True)) == {"a": 2, "b": 1}


def test_many_small_sources_are_one_bar() -> None:
    names = [f"d{n}" for n in range(40) for _ in range(40 - n)]
    figure = plot_sources(pd.DataFrame({"dataset": names}))
    assert figure.data[0].y[0] == "15 others"
    assert sum(figure.data[0].x) == len(names)


def test_scores_of_rows_count_every_row_in_each_line() -> None:
    columns = ["score", "score_dataset", "score_query", "score_answer"]
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 4)), columns=columns)
    assert [sum(line.y) for line in plot_scores_of_rows(rows).data] == [50] * 4
    assert len(plot_scores_of_rows(rows.head(1)).data) == 4


def points(**changes: object) -> pd.DataFrame:
    line = {"kind": "example", "id": "a", "dataset": "d", "text": "t", "x": 0.0, "y": 0.0, "cosine": np.nan}
    item = {"kind": "evaluation item", "dataset": "", "cosine": 0.4}
    return pd.DataFrame([line, line | {"kind": "source row"}, line | item, line | item | changes])


def test_nothing_in_a_points_text_is_markup() -> None:
    figure = plot_embedding_map(points(text='<b onclick="x">bold</b> ' + "word " * 200))
    assert [trace.name for trace in figure.data] == ["source rows", "evaluation items", "examples"]
    shown = figure.data[1].hovertext[1]
    assert shown.startswith("<br>&lt;b onclick=&quot;x&quot;&gt;bold&lt;/b&gt;")
    assert shown.endswith(" …")


def test_nearness_is_the_cosines_in_order() -> None:
    line = plot_nearness(points(cosine=0.2)).data[0]
    assert list(line.y) == [0.2, 0.4]
    assert list(line.x) == [25.0, 75.0]
    assert list(plot_nearness(points()[:2]).data[0].y) == []
