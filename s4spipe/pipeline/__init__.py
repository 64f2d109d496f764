"""The pipeline around the library: parameters, places, stages."""

from s4spipe.runtime.errors import needs

with needs("pipeline", "the pipeline"):
    import click  # noqa: F401
    import pydantic  # noqa: F401
    import ruamel.yaml  # noqa: F401
