"""What a run shows: reports, plots, records, traces, lineage."""
