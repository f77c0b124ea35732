"""A package with a provider, as docs/howto/provider.md describes it."""

import shutil
from pathlib import Path

_DOCS = Path(__file__).parents[2] / "docs" / "howto"


def install_rule_teacher(folder: Path) -> Path:
    """Install the package into a folder for ``PYTHONPATH``, without pip; returns the folder."""
    site = folder / "site"
    metadata = site / "rule_teacher-1.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(_DOCS / "rule_teacher.py", site)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rule-teacher\nVersion: 1\n")
    page = (_DOCS / "provider.md").read_text()
    (metadata / "entry_points.txt").write_text(
        "[rebase.teachers]\n" + next(line.replace('"', "") for line in page.splitlines() if line.startswith("rule = "))
    )
    return site
