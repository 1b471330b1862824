"""A notebook, and five scripts to be read in order."""
