from collections import Counter

from hypothesis import settings
from support.hostile import place  # noqa: F401  (a fixture of the tests of hostile files)
from support.pipeline import edited, project  # noqa: F401  (fixtures of the tests that run the pipeline)

# No deadlines (machines are noisy), and the same examples every time, so that a red run is red again.
settings.register_profile("s4spipe", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("s4spipe")


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
