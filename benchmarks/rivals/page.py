"""The comparison's tables."""

from statistics import mean, stdev

MEASURES = {
    "to_teacher": "Fréchet distance to the teacher's samples from the same noises, in the judge's features",
    "fid": "Fréchet distance to the distribution, from other noises",
    "error": "RMS distance to the teacher's samples",
    "evaluations": "Network evaluations spent to find it, in thousands",
    "seconds": "Seconds of a core that took",
}


def page(found: dict[str, dict[str, list[dict]]], settings: dict) -> str:
    """A section for every model, a table for every measure, a row for every solver; the lowest of a column is bold."""
    lines = []
    for name, rows in found.items():
        lines += [f"## {name}", ""]
        (teacher,) = {cell["nfe"] for cell in rows["teacher"]}
        own = mean(cell["fid"] for cell in rows["teacher"])
        lines += [f"Teacher: {teacher} evaluations, Fréchet distance {own:.4g} to its own distribution.", ""]
        for measure, title in MEASURES.items():
            lines += [f"{title}:", "", "| NFE | " + " | ".join(map(str, settings["nfe"])) + " |"]
            lines.append("|---|" + "--:|" * len(settings["nfe"]))
            solvers = {row: cells for row, cells in rows.items() if row != "teacher"}
            values = {row: [_values(cells, nfe, measure) for nfe in settings["nfe"]] for row, cells in solvers.items()}
            least = [
                min((mean(v[i]) for v in values.values() if v[i]), default=None) for i in range(len(settings["nfe"]))
            ]
            for row, columns in values.items():
                cells = [_cell(column, low, measure) for column, low in zip(columns, least, strict=True)]
                lines.append(f"| {row} | " + " | ".join(cells) + " |")
            lines.append("")
    return "\n".join(lines)


def _values(cells: list[dict], nfe: int, measure: str) -> list[float]:
    return [cell[measure] for cell in cells if cell["nfe"] == nfe and measure in cell]


def _cell(values: list[float], least: float | None, measure: str) -> str:
    if not values:
        return "-"
    if measure == "evaluations":
        return f"{mean(values) / 1000:.0f}"
    if measure == "seconds":
        return f"{mean(values):.0f}"
    text = f"{mean(values):.3g}" + (f" ± {stdev(values):.1g}" if len(values) > 1 else "")
    return f"**{text}**" if mean(values) == least else text
