"""Sources of raw rows: local folders and the hub, both read with the ``datasets`` library.

``base`` defines a source, ``folder`` and ``hub`` implement it, ``locations`` finds sources; ``files`` finds the data
files of a config, ``reading`` samples their rows (``parquet``, ``text_files`` and ``rows`` by format), ``cards`` parses
dataset cards, ``errors`` classifies failures.
"""

from rebase.datastore.sources.base import Source
from rebase.datastore.sources.cards import parse_card
from rebase.datastore.sources.errors import TooSlowError, check_time, failure_reason, time_limit
from rebase.datastore.sources.files import is_data_file
from rebase.datastore.sources.folder import FolderSource
from rebase.datastore.sources.hub import HubSource
from rebase.datastore.sources.locations import find_sources
from rebase.datastore.sources.reading import all_rows, read_file
from rebase.datastore.sources.rows import RowSample

__all__ = [
    "FolderSource",
    "HubSource",
    "RowSample",
    "Source",
    "TooSlowError",
    "all_rows",
    "check_time",
    "failure_reason",
    "find_sources",
    "is_data_file",
    "parse_card",
    "read_file",
    "time_limit",
]
