"""Types by which kedro-viz chooses how to show a preview.

kedro-viz compares the name of the type that ``preview`` is annotated with. kedro-datasets keeps these types in a
private module; ``tests/datasets/test_previews.py`` checks their names.
"""

from typing import NewType

from kedro_datasets._typing import JSONPreview, TablePreview

#: A text, shown unchanged; kedro-datasets has no type for it.
TextPreview = NewType("TextPreview", str)

__all__ = ["JSONPreview", "TablePreview", "TextPreview"]
