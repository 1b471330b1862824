"""Folds of one training set: segmentation scenes, a U-Net with deep supervision, and the training of its folds."""
