from hypothesis import settings
from pipeline import edited, project  # noqa: F401  (fixtures of the tests that run the pipeline)

# No deadlines (machines are noisy), and the same examples every time, so that a red run is red again.
settings.register_profile("s4spipe", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("s4spipe")


def pytest_collection_modifyitems(items):
    """First the file that takes longest, so that no core waits for another at the end; last the one that uses the
    pipeline's run which the first has made meanwhile."""
    items.sort(key=lambda item: {"test_pipeline": 0, "test_kill": 2}.get(item.path.stem, 1))
