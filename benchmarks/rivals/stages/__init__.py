"""The stages of the comparison's pipeline, each a module that `python -m` runs in benchmarks/rivals."""
