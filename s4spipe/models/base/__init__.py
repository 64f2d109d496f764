"""The common part of all kinds of models."""
