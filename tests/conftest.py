import os
from collections import Counter

import pytest
from coverage import Coverage
from hypothesis import settings
from support.clone import clone  # noqa: F401  (a fixture of the tests that run all stages with other models)
from support.hostile import place  # noqa: F401  (a fixture of the tests of hostile files)
from support.pipeline import edited, project  # noqa: F401  (fixtures of the tests that run the pipeline)

# No deadlines (machines are noisy), and the same examples every time, so that a red run is red again.
settings.register_profile("s4spipe", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("s4spipe")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The slow ones first, so that no core waits for one of them in the end. Every process begins with the slowest of
    all; the first process with those that need the tiny project, so that the others need not wait until it is there."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for name, among in (("test_docs.py", processes), ("test_other_models.py", max(1, processes - 1))):
        slowest = [item for item in items if item.path.name == name and item.get_closest_marker("slow")]
        for number, item in enumerate(slowest):
            items.remove(item)
            items.insert((processes - 1 - number % among) * (len(items) // processes), item)


COUNTED = 3  # cases of every test
SEEN: Counter = Counter()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Coverage counts the first cases of a test: hundreds of others take its time, and add few lines."""
    SEEN[item.location[0], item.originalname] += 1
    counting = Coverage.current() if SEEN[item.location[0], item.originalname] > COUNTED else None
    if counting:
        counting.stop()
    try:
        return (yield)
    finally:
        if counting:
            counting.start()


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
