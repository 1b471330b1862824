"""A notebook, and scripts to be read in order."""
