"""Image-text pairs, from folders on disk to batches."""
