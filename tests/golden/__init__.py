"""Children, byte for byte: what a change that should change nothing is held against.

`python -m tests.golden --check` compares, `python -m tests.golden --write` renews.
"""
