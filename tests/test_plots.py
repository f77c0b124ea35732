import pandas as pd

from rebase.plots import plot_scores, plot_sources


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
