"""The table of `s4spipe.solvers.best_schedules` as a page to read. Run as `python -m benchmarks.schedules_page`."""

import itertools

from s4spipe.runtime.files import write_text
from s4spipe.solvers import timesteps
from s4spipe.solvers.best_schedules import USUAL, read

NFES = (3, 4, 5, 6, 8, 10)
PATH = "docs/results/schedules.md"


def page(fids: dict[tuple[str, str, int], float]) -> str:
    """The table, the best of each column in bold."""
    solvers = list(dict.fromkeys(solver for solver, _, _ in fids))
    text = [
        "# Every classical solver on every schedule",
        "",
        "FID on the embedded model, 1,000 samples from the same noises, made by `python -m benchmarks.schedules`.",
        "There are fewer samples than elsewhere, which raises all values alike: only their order matters. Bold: the",
        "best of its column in each section. The numbers are in",
        "[best_schedules.csv](../../s4spipe/solvers/best_schedules.csv).",
        "",
    ]
    for title, names in (
        ("The four usual schedules", USUAL),
        ("Schedules spaced in the time of a VP process", [n for n in timesteps.FORMULAS if n not in USUAL]),
    ):
        best = {nfe: min(fids[s, k, nfe] for s in solvers for k in names) for nfe in NFES}
        text += [
            f"## {title}",
            "",
            "| solver | schedule | " + " | ".join(f"NFE {n}" for n in NFES) + " |",
            "|---|---|" + "--:|" * len(NFES),
        ]
        for solver, name in itertools.product(solvers, names):
            cells = (fids[solver, name, nfe] for nfe in NFES)
            marked = (f"**{v:.2f}**" if v == best[nfe] else f"{v:.2f}" for v, nfe in zip(cells, NFES, strict=True))
            text.append(f"| {solver} | {name} | " + " | ".join(marked) + " |")
        text.append("")
    return "\n".join(text)


if __name__ == "__main__":
    write_text(PATH, page(read()))
