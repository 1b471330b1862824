"""The parents' ensemble: label sets and outputs."""
