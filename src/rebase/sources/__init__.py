"""Where raw rows come from: local folders and the hub, both read through the ``datasets`` library.

``base`` says what a source is, ``folder`` and ``hub`` are the two kinds, ``catalogue`` lists many of the second;
``reading`` takes rows from files, ``cards`` reads what a dataset says of itself, ``errors`` tells failures apart.
"""

from rebase.sources.base import Reading, Source
from rebase.sources.cards import parse_card
from rebase.sources.errors import why_unread
from rebase.sources.folder import FolderSource
from rebase.sources.hub import HubSource
from rebase.sources.locations import find_sources
from rebase.sources.reading import RawBatch, Sample, read_files, read_rows, rows_of

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
