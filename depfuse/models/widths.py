"""Widths of scaled networks."""


def scaled(channels: int, width: float) -> int:
    """Scale `channels` by the width factor, rounded, and at least to one."""
    if not width > 0:
        raise ValueError(f"width {width} must be positive")
    return max(1, round(channels * width))
