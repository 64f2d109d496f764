"""The comparison's tables."""

import math
from statistics import mean, stdev

MEASURES = {
    "to_teacher": "Fréchet distance to the teacher's samples from the same noises, in the judge's features",
    "fid": "Fréchet distance to the distribution, from other noises",
    "error": "RMS distance to the teacher's samples",
    "evaluations": "Network evaluations spent to find it, in thousands",
    "seconds": "Seconds of a core that took",
}
DEFAULT = "free_bands_default"  # the pipeline's recommended learner, as it is by default
OURS = ("free", "gauss_newton")  # what fits our rows (`by`)


def page(found: dict[str, dict[str, list[dict]]], settings: dict) -> str:
    """A section for every model, a table for every measure, a row for every solver, a column for every NFE that has
    been run; the lowest of a column is bold."""
    lines = []
    for name, rows in found.items():
        lines += [f"## {name}", ""]
        (teacher,) = {cell["nfe"] for cell in rows["teacher"]}
        own = mean(cell["fid"] for cell in rows["teacher"])
        lines += [f"Teacher: {teacher} evaluations, Fréchet distance {own:.4g} to its own distribution.", ""]
        solvers = {row: cells for row, cells in rows.items() if row != "teacher"}
        run = {cell["nfe"] for cells in solvers.values() for cell in cells}
        nfes = [nfe for nfe in settings["nfe"] if nfe in run]
        for measure, title in MEASURES.items():
            lines += [f"{title}:", "", "| NFE | " + " | ".join(map(str, nfes)) + " |"]
            lines.append("|---|" + "--:|" * len(nfes))
            values = {row: [_values(cells, nfe, measure) for nfe in nfes] for row, cells in solvers.items()}
            least = [min((mean(v[i]) for v in values.values() if v[i]), default=None) for i in range(len(nfes))]
            for row, columns in values.items():
                cells = [_cell(column, low, measure) for column, low in zip(columns, least, strict=True)]
                lines.append(f"| {row} | " + " | ".join(cells) + " |")
            lines.append("")
    return "\n".join(lines + _lead(found, settings) + _default(found, settings))


def _lead(found: dict[str, dict[str, list[dict]]], settings: dict) -> list[str]:
    """How far ahead of the others `free` is in the distance to the teacher's samples, where that row has been run."""
    lines = [
        "## How far ahead free is",
        "",
        "Rivals: all rows but `free` and our other fits. Left out are rows that learn from more pairs than others, and",
        "`free` without c_0. Not outside the spread: the means lie no farther apart than both standard deviations",
        "together. Nearest, by seed: the seeds with which no other row is as near.",
        "",
        "| model | NFE | nearest rival | times as far | nearest of all others | times as far | not outside the spread "
        "| nearest, by seed |",
        "|---|--:|---|--:|---|--:|---|--:|",
    ]
    apart = {row for row, block in settings["rows"].items() if {"pairs", "late", "mean"} & set(block)}
    for name, rows in found.items():
        for nfe in settings["nfe"]:
            by_seed = {
                row: {cell["seed"]: cell["to_teacher"] for cell in cells if cell["nfe"] == nfe}
                for row, cells in rows.items()
                if row != "teacher"
            }
            own = by_seed.pop("free", {})
            others = {row: values for row, values in by_seed.items() if values and row not in apart}
            rivals = [row for row in others if _rival(row, settings)]
            if not own or not rivals:
                continue
            times = {row: mean(values.values()) / mean(own.values()) for row, values in others.items()}
            rival, nearest = min(rivals, key=times.get), min(times, key=times.get)
            close = [row for row, values in others.items() if _low(values) <= mean(own.values()) + _spread(own)]
            ahead = sum(all(values.get(seed, math.inf) > own[seed] for values in others.values()) for seed in own)
            lines.append(
                f"| {name} | {nfe} | {rival} | {times[rival]:.2g} | {nearest} | {times[nearest]:.2g} "
                f"| {', '.join(close) or 'none'} | {ahead} of {len(own)} |"
            )
    return [*lines, ""]


def _default(found: dict[str, dict[str, list[dict]]], settings: dict) -> list[str]:
    """How far ahead of the rivals the recommended learner is by its default settings, where that row has been run."""
    table = []
    for name, rows in found.items():
        for nfe in settings["nfe"]:
            by_seed = {row: {cell["seed"]: cell for cell in cells if cell["nfe"] == nfe} for row, cells in rows.items()}
            own = by_seed.get(DEFAULT, {})
            rivals = {
                row: cells for row, cells in by_seed.items() if _rival(row, settings) and own.keys() <= cells.keys()
            }
            if own and rivals:
                table.append(f"| {name} | {nfe} | {_ahead(own, rivals)} |")
    if not table:
        return []
    return [
        f"## How far ahead {DEFAULT} is",
        "",
        "Rivals: all rows but ours, with the seeds that this one has been run with. Evaluations: those spent on",
        "learning it, as a part of the nearest rival's.",
        "",
        "| model | NFE | nearest rival | times as close | by seed | evaluations |",
        "|---|--:|---|--:|--:|--:|",
        *table,
        "",
    ]


def _ahead(own: dict[int, dict], rivals: dict[str, dict[int, dict]]) -> str:
    """The nearest rival, and how much nearer our cells, by seed, are than the rivals' with the same seeds."""

    def average(cells: dict[int, dict], measure: str) -> float:
        return mean(cells[seed][measure] for seed in own)

    nearest = min(rivals, key=lambda row: average(rivals[row], "to_teacher"))
    times = average(rivals[nearest], "to_teacher") / average(own, "to_teacher")
    least = {seed: min(cells[seed]["to_teacher"] for cells in rivals.values()) for seed in own}
    by_seed = ", ".join(f"{least[seed] / own[seed]['to_teacher']:.3g}" for seed in own)
    evaluations = average(own, "evaluations") / average(rivals[nearest], "evaluations")
    return f"{nearest} | {times:.3g} | {by_seed} | {evaluations:.2g}"


def _rival(row: str, settings: dict) -> bool:
    """Whether a row is neither the teacher nor one of ours."""
    return row != "teacher" and settings["rows"][row.removesuffix("_edm")].get("by") not in OURS


def _spread(values: dict[int, float]) -> float:
    return stdev(values.values()) if len(values) > 1 else 0.0


def _low(values: dict[int, float]) -> float:
    return mean(values.values()) - _spread(values)


def _values(cells: list[dict], nfe: int, measure: str) -> list[float]:
    return [cell[measure] for cell in cells if cell["nfe"] == nfe and measure in cell]


def _cell(values: list[float], least: float | None, measure: str) -> str:
    if not values:
        return "-"
    if measure == "evaluations":
        return f"{mean(values) / 1000:.0f}"
    if measure == "seconds":
        return f"{mean(values):.0f}"
    spread = f" ± {float(f'{stdev(values):.1g}'):g}" if len(values) > 1 else ""  # 90, not 9e+01
    text = f"{mean(values):.3g}{spread}"
    return f"**{text}**" if mean(values) == least else text
