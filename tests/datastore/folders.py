"""Folders of datasets for the tests of the sources."""

from rebase.datastore.sources import FolderSource


def folder(path, files):
    """A folder with these files; text or bytes."""
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return FolderSource(path)
