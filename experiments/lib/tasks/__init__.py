"""Networks of every kind of output: their data, what they are, how they are trained and how they are scored."""
