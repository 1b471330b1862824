"""Other people's tools around a fusion; each is imported by its own module alone."""
