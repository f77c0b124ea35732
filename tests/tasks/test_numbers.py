import pytest

from rebase.tasks.numbers import plain_math, stated_number, unstated_number


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (r"1{,}234 and 5,\!678", "1,234 and 5,678"),
        (r"\frac{1}{2}, \dfrac{-3}{4}, \tfrac56, 2\frac{1}{2}", "1/2, -3/4, 5/6, 2 1/2"),
        (r"\text{about } 3 \times 10^{4}", "about  3 * 10^4"),
        (r"\(\$5\)", " $5 "),
        ("１，２３４（B）", "1,234(B)"),
    ],
)
def test_latex_and_full_width_forms_become_plain_text(text: str, plain: str) -> None:
    assert plain_math(text) == plain


@pytest.mark.parametrize(
    ("text", "stated", "unstated"),
    [
        ("12 apples for 4 children", "12", "4"),
        ("18\nfor 3 rows", "18", "18"),
        ("5 + 6 = 11 cars", "11", "11"),
        ("(3 each)", "3", "3"),
        ("1/0", "1", "0"),
        ("none", "", ""),
    ],
)
def test_a_statement_begins_with_its_number_and_other_text_ends_with_it(text: str, stated: str, unstated: str) -> None:
    assert stated_number(text) == stated
    assert unstated_number(text) == unstated
