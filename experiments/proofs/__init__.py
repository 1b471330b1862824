"""What holds of every architecture."""
