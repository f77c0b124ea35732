"""A Parquet table that may not exist yet."""

import pandas as pd

from rebase.datasets.checked import CheckedParquet


class OptionalTableDataset(CheckedParquet):
    """Load a Parquet table, or an empty frame without columns where no run has written it yet.

    A version that is named (``--load-versions``) must exist.
    """

    def load(self) -> pd.DataFrame:
        is_named = self._version is not None and self._version.load is not None
        return super().load() if is_named or self.exists() else pd.DataFrame()
