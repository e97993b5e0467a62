"""Shipped models, data only: one folder a model."""
