from hypothesis import settings
from pipeline import edited, project  # noqa: F401  (fixtures of the tests that run the pipeline)

# No deadlines (machines are noisy), and the same examples every time, so that a red run is red again.
settings.register_profile("s4spipe", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("s4spipe")


def pytest_collection_modifyitems(items):
    """Two cores start at the beginning and in the middle, and take from the other's end what is left there: so the
    longest tests stand in these two places, and the others that go on from the pipeline's run last."""
    order = ["test_pipeline", "", "test_pipeline_grows", "test_kill"]
    items.sort(key=lambda item: order.index(item.path.stem if item.path.stem in order else ""))
    longest = [item for item in items if item.path.stem == "test_docs" and item.get_closest_marker("slow")]
    longest.sort(key=lambda item: item.name)
    rest = [item for item in items if item not in longest]
    first, second = longest[::2], longest[1::2]
    middle = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *rest[:middle], *second, *rest[middle:]]
