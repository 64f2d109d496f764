"""docs/schedules.csv as a page to read. Run as `python -m benchmarks.schedules_page`."""

import itertools

from s4spipe import steps
from s4spipe.best import USUAL, read
from s4spipe.files import write_text

NFES = (3, 4, 5, 6, 8, 10)


def page(fids: dict[tuple[str, str, int], float]) -> str:
    """The table, the best of each column in bold."""
    solvers = list(dict.fromkeys(solver for solver, _, _ in fids))
    text = [
        "# Every classical solver on every schedule",
        "",
        "FID on the embedded model, 1,000 samples from the same noises: fewer than elsewhere, so all values are",
        "higher alike and their order is what counts. Made by `python -m benchmarks.schedules`; the numbers are in",
        "[schedules.csv](schedules.csv). Bold: the best of its column, among the same kind of schedules.",
        "",
    ]
    for title, names in (
        ("The four usual schedules", USUAL),
        ("Steps on the clock of a VP process", [n for n in steps.STEPS if n not in USUAL]),
    ):
        best = {nfe: min(fids[s, k, nfe] for s in solvers for k in names) for nfe in NFES}
        text += [
            f"## {title}",
            "",
            "| solver | steps | " + " | ".join(f"NFE {n}" for n in NFES) + " |",
            "|---|---|" + "--:|" * len(NFES),
        ]
        for solver, name in itertools.product(solvers, names):
            cells = (fids[solver, name, nfe] for nfe in NFES)
            marked = (f"**{v:.2f}**" if v == best[nfe] else f"{v:.2f}" for v, nfe in zip(cells, NFES, strict=True))
            text.append(f"| {solver} | {name} | " + " | ".join(marked) + " |")
        text.append("")
    return "\n".join(text)


if __name__ == "__main__":
    write_text("docs/schedules.md", page(read()))
