"""Distributions of latents and pixels: floats for training and scores, each with its integer form for the coder."""
