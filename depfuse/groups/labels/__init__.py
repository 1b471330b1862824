"""Labels of positions, the rules of operations, and classes of labels."""
