"""The solver table, the one sampling loop, and the one way from noises to samples."""
