from hypothesis import settings
from support.pipeline import edited, project  # noqa: F401  (fixtures of the tests that run the pipeline)

# No deadlines (machines are noisy), and the same examples every time, so that a red run is red again.
settings.register_profile("s4spipe", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("s4spipe")


def pytest_collection_modifyitems(items):
    """The slow ones first, so that no core waits for one of them in the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
