"""Small detectors without anchors, the pictures they learn from, and their scores."""
