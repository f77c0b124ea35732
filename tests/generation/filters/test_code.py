import pytest

from rebase.generation.filters.base import Rejection
from rebase.generation.filters.code import reject_without_code
from tests.generation.filters.rows import row


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"intent": "Sort the list.", "snippet": "names.sort()"}, None),
        ({"answer": "Like this:\n```python\nnames.sort()\n```\nIt sorts in place."}, None),
        ({"question": "空港は何の直訳か", "answers": "text: Airport, answer_start: 124"}, "no_code"),
        ({"solutions": '["import os\\nprint(os.sep)"]'}, None),
        ({"answer": "```bash\npip list | sort\n```\nThen:\n```python\nnames.sort()\n```"}, None),
        ({"title": "Paris (France)", "places": "Mercury (planet); Smith [1]"}, "no_code"),
        ({}, "no_code"),
    ],
)
def test_a_row_needs_a_cell_of_code(cells, reason):
    assert reject_without_code(row(cells)) == (reason and Rejection(reason))
