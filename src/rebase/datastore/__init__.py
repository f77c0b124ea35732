"""The datastore: rows, cells, vectors, the index and its search."""
