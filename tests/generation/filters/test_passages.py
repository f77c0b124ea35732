from rebase.generation.filters.passages import find_passage, reject_without_passage
from rebase.parameters import LicensePolicy, RetrieveParameters
from tests.generation.filters.rows import row

PARAMETERS = RetrieveParameters(
    top_n=5, aggregation="max_of_mean", search="exact", annoy_candidates=10,
    licenses=LicensePolicy(allow=("*",), deny=("*-nc-*", "*-nc"), unknown="allow"),
    near_duplicate=0.8, max_dataset_share=0.5, min_passage_words=4, max_passage_words=8,
)  # fmt: skip


def test_passage_is_the_longest_cell_cut_at_a_sentence():
    cells = {"title": "Short.", "body": "One two three. Four five six. Seven eight nine ten eleven."}
    assert find_passage(row(cells), PARAMETERS) == "One two three. Four five six."
    assert reject_without_passage(row(cells), PARAMETERS) is None
    assert reject_without_passage(row("too few words"), PARAMETERS).reason == "no_passage"
    assert reject_without_passage(row({}), PARAMETERS).reason == "no_passage"


def test_a_japanese_passage_is_measured_in_letters():
    body = "鯨は海に住む。春には子を連れて北へ帰る。"  # seven, and thirteen letters and signs
    assert find_passage(row(body), PARAMETERS) is None
    assert find_passage(row(body * 2), PARAMETERS) is None
    assert find_passage(row("鯨は海に住む動物だ。春には北へ帰る。"), PARAMETERS) == "鯨は海に住む動物だ。"
    assert find_passage(row("鯨は海に住む"), PARAMETERS) is None
