"""Image files and arrays: formats and metadata, classical coders, tiles. Knows nothing of models."""
