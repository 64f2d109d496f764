import sys
from collections import Counter

import pytest
from hypothesis import settings
from support.hostile import place  # noqa: F401  (a fixture of the tests of hostile files)
from support.pipeline import COUNTED, edited, project  # noqa: F401  (fixtures of the tests that run the pipeline)

# No deadlines (machines are noisy), and the same examples every time, so that a red run is red again.
settings.register_profile("s4spipe", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("s4spipe")


@pytest.fixture(autouse=True)
def uncounted(request):
    """The lines that a slow test runs, here and in stages, are not counted by coverage: the others run them all."""
    if not request.node.get_closest_marker("slow"):
        yield
        return
    counting = sys.gettrace()
    sys.settrace(None)
    COUNTED.append(False)
    yield
    COUNTED.pop()
    sys.settrace(counting)


def pytest_collection_modifyitems(items):
    """The slow ones first, so that no core waits for one of them in the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter):
    """What the sweeps have tried: the sums of the numbers that their tests gave to `record_property`, and the seeds."""
    counts, seeds = Counter(), set()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "seed":
                seeds.add(value)
            else:
                counts[name] += value
    for name, count in counts.items():
        terminalreporter.write_line(f"{name}: {count:,}")
    if seeds:
        terminalreporter.write_line(f"seeds: {', '.join(sorted(seeds))}")
