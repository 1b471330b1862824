"""What experiments share: cells, tables, parents and steps."""
