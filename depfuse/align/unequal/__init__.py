"""Match networks of unequal widths."""
