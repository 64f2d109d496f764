from hypothesis import settings
from pipeline import edited, project  # noqa: F401  (fixtures of the tests that run the pipeline)

# No deadlines (machines are noisy), and the same examples every time, so that a red run is red again.
settings.register_profile("s4spipe", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("s4spipe")


def pytest_collection_modifyitems(items):
    """First the longest, which go on from the pipeline's run, last the others that do: by then it is there for them.
    Cores start at different places of this order, and take from its end what others leave."""
    order = ["test_docs", "test_pipeline", "", "test_pipeline_grows", "test_kill"]
    items.sort(key=lambda item: order.index(item.path.stem if item.path.stem in order else ""))
