"""Sources of raw rows: local folders and the hub, both read with the ``datasets`` library.

``base`` defines a source, ``folder`` and ``hub`` implement it, ``locations`` finds sources; ``reading`` samples rows
of files, ``cards`` parses dataset cards, ``errors`` classifies failures.
"""

from rebase.datastore.sources.base import Reading, Source
from rebase.datastore.sources.cards import parse_card
from rebase.datastore.sources.errors import failure_reason
from rebase.datastore.sources.folder import FolderSource
from rebase.datastore.sources.hub import HubSource
from rebase.datastore.sources.locations import find_sources
from rebase.datastore.sources.reading import RowSample, read_files, read_rows

__all__ = [
    "FolderSource",
    "HubSource",
    "Reading",
    "RowSample",
    "Source",
    "failure_reason",
    "find_sources",
    "parse_card",
    "read_files",
    "read_rows",
]
