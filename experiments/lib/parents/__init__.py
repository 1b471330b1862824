"""Every parent that an experiment runs on: whose it is, where it lies and how it is trained."""
