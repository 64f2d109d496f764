"""The pages of the documentation: links, what is rendered from the code, and what they say of the pipeline."""

import re
import subprocess

import pytest
from ruamel.yaml import YAML
from support.pipeline import ROOT

from benchmarks import schedules_page
from docs import make_api
from s4spipe.pipeline import render
from s4spipe.solvers import best_schedules

DOCS = ROOT / "docs"
INDEX = DOCS / "index.md"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "inputs").rglob("*.md")])


def read(page):
    return page.read_text(encoding="utf-8")


def links(page):
    """What a page links to, in the project: path and anchor."""
    prose = re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", read(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target, anchor in links(page):
        assert target.exists(), f"{target.relative_to(ROOT)} is not there"
        if anchor:
            assert anchor in anchors(target), f"no heading #{anchor} in {target.relative_to(ROOT)}"


def test_every_page_is_reached_from_the_index_and_the_index_from_readme():
    assert INDEX in dict(links(ROOT / "README.md"))
    reached, todo = set(), [INDEX]
    while todo:
        page = todo.pop()
        if page not in reached and page.suffix == ".md" and DOCS in page.parents:
            reached.add(page)
            todo += [target for target, _ in links(page)]
    unlinked = {path for path in DOCS.rglob("*.md") if path.parent.name not in ("ablations", "benchmarks", "sweep")}
    assert unlinked <= reached


def test_rendered_pages_are_current():
    assert read(make_api.PAGE) == make_api.page(), "run python -m docs.make_api"
    assert read(DOCS / "reference/parameters.md") == render.reference(), "run python -m s4spipe.pipeline.render"
    assert read(DOCS / "results/schedules.md") == schedules_page.page(best_schedules.read())


def tables(page):
    """Every table of a page, as its lines."""
    return tables_in(read(page))


def tables_in(text):
    return re.findall(r"(?:^\|.*\n)+", text, re.M)


def committed(path):
    return subprocess.check_output(["git", "show", f"HEAD:./{path}"], cwd=ROOT, encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "generated"),
    [
        ("docs/results/results.md", "docs/results/sweep/table.md"),
        ("docs/results/ablations.md", "docs/results/ablations/5-0.md"),
        ("docs/results/benchmarks.md", "docs/results/benchmarks/cost.md"),
        ("docs/results/benchmarks.md", "docs/results/benchmarks/restarts.md"),
        ("docs/results/benchmarks.md", "docs/results/benchmarks/stages.md"),
        ("README.md", "runs/digits/report/table.md"),
    ],
)
def test_a_page_shows_the_tables_that_were_generated(page, generated):
    """Here or, where the pipeline was run anew (another processor gives other last digits), as they were committed."""
    shown = set(tables(ROOT / page))
    assert set(tables(ROOT / generated)) <= shown or set(tables_in(committed(generated))) <= shown


STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


def table_of_stages():
    """By stage: the parameters and the outputs that the page names."""
    (table,) = (table for table in tables(DOCS / "reference/stages.md") if "| writes |" in table)
    rows = {}
    for line in table.splitlines()[2:]:
        names, _, parameters, writes = line.strip("|").split("|")
        if "the same" in parameters:  # as in the row before
            parameters = next(reversed(rows.values()))[0]
        rows |= dict.fromkeys(re.findall(r"`(\w+)`", names), (parameters, writes))
    return rows


def test_the_page_of_stages_has_them_all():
    assert set(table_of_stages()) == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_the_page_of_stages_has_their_parameters_and_outputs(name):
    parameters, writes = table_of_stages()[name]
    for key in STAGES[name].get("params", []):
        before, item, _ = key.partition("${item.")
        assert f"`{before}" in parameters if item else f"`{key}`" in parameters
    for out in STAGES[name]["outs"]:
        path, options = next(iter(out.items())) if isinstance(out, dict) else (out, {})
        path = path.removeprefix("runs/${item.model}/")
        assert path.startswith("$") or f"`{re.split('[$/]', path)[0]}" in writes
        assert ("*" in writes) == options.get("cache", True)


def test_the_programs_of_the_guide_to_schedules_run():
    (program,) = re.findall(r"^```python\n(.*?)^```", read(DOCS / "guide/schedules.md"), re.M | re.S)
    names = {}
    exec(program, names)
    assert len(names["t"]) == 6
