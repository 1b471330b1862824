"""Prepare teachers, find one head for all, distil."""
