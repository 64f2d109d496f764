"""Measuring a solver's samples."""
