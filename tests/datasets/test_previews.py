from rebase.datasets import previews


def test_the_types_have_the_names_that_kedro_viz_knows():
    for name in ("JSONPreview", "TablePreview", "TextPreview"):
        assert getattr(previews, name).__name__ == name
