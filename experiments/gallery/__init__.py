"""Five scripts to be read in order."""
