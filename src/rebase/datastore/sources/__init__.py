"""Where raw rows come from: local folders and the hub, both read through the ``datasets`` library.

``base`` says what a source is, ``folder`` and ``hub`` are the two kinds, ``catalog`` lists many of the second;
``reading`` takes rows from files, ``cards`` reads what a dataset says of itself, ``errors`` tells failures apart.
"""

from rebase.datastore.sources.base import Reading, Source
from rebase.datastore.sources.cards import parse_card
from rebase.datastore.sources.errors import why_unread
from rebase.datastore.sources.folder import FolderSource
from rebase.datastore.sources.hub import HubSource
from rebase.datastore.sources.locations import find_sources
from rebase.datastore.sources.reading import RawBatch, Sample, read_files, read_rows, rows_of

__all__ = [
    "FolderSource",
    "HubSource",
    "RawBatch",
    "Reading",
    "Sample",
    "Source",
    "find_sources",
    "parse_card",
    "read_files",
    "read_rows",
    "rows_of",
    "why_unread",
]
