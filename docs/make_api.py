"""Renders docs/reference/api.md from the signatures and docstrings of the public API.

Run as `python -m docs.make_api` from the project's root. Signatures are taken from the source code, so the page does
not depend on the version of Python.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import s4spipe
from s4spipe import classical, models, noise, scheduler
from s4spipe.learning import families, reward, search
from s4spipe.learning.genome import Genome, Step, of_classical
from s4spipe.sampling import likelihood, loop, rk45
from s4spipe.sampling.colored import colored
from s4spipe.sampling.likelihood import Likelihood
from s4spipe.sampling.mean_reverting import around, centered
from s4spipe.sampling.predictor_corrector import predictor_corrector
from s4spipe.sampling.tableau.adaptive import Adaptive
from s4spipe.scheduler.applied import Applied
from s4spipe.solvers import dpm_v3, statistics, timesteps

PAGE = Path(__file__).parent / "reference/api.md"
INTRODUCTION = """# Python API

Unless an extra is named, torch, numpy and safetensors are enough. Tableaux and solver states are float64. Shapes are in
square brackets: B is the batch size, N the number of evaluations, S the number of steps. A wrong argument raises
`s4spipe.runtime.errors.UserError`, a `ValueError` whose message is one sentence.

This page is rendered from the docstrings by `python -m docs.make_api`.
"""
# The sections of the page: a title, a remark, and the import paths of what the section describes.
SECTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("Solvers and sampling", "", {
        "s4spipe.Tableau": s4spipe.Tableau,
        "s4spipe.sample": s4spipe.sample,
        "s4spipe.sampling.loop.Recording": loop.Recording,
        "s4spipe.sampling.rk45.solve": rk45.solve,
        "s4spipe.sampling.rk45.Solution": rk45.Solution,
        "s4spipe.sampling.tableau.adaptive.Adaptive": Adaptive,
        "s4spipe.sampling.likelihood.log_likelihood": likelihood.log_likelihood,
        "s4spipe.sampling.likelihood.Likelihood": Likelihood,
        "s4spipe.sampling.predictor_corrector.predictor_corrector": predictor_corrector,
        "s4spipe.sampling.colored.colored": colored,
        "s4spipe.sampling.mean_reverting.centered": centered,
        "s4spipe.sampling.mean_reverting.around": around,
    }),
    ("In a pipeline of diffusers", "Needs the extra `diffusers`.", {
        "s4spipe.apply": s4spipe.apply,
        "s4spipe.scheduler.applied.Applied": Applied,
        "s4spipe.scheduler.S4SScheduler": scheduler.S4SScheduler,
    }),
    ("Classical solvers and schedules", "[All solvers](solvers.md) lists their names.", {
        "s4spipe.classical.build": classical.build,
        "s4spipe.classical.parse": classical.parse,
        "s4spipe.classical.evals_per_step": classical.evals_per_step,
        "s4spipe.classical.coefficients": classical.coefficients,
        "s4spipe.solvers.dpm_v3.Statistics": dpm_v3.Statistics,
        "s4spipe.solvers.statistics.estimate": statistics.estimate,
        "s4spipe.solvers.statistics.Data": statistics.Data,
        "s4spipe.solvers.timesteps.build": timesteps.build,
    }),
    ("Models", "Models of kind `diffusers` and `digits` need the extra `diffusers`.", {
        "s4spipe.models.load": models.load,
        "s4spipe.models.ModelSettings": models.ModelSettings,
        "s4spipe.models.Denoiser": models.Denoiser,
        "s4spipe.models.noise_schedule": models.noise_schedule,
        "s4spipe.models.identity": models.identity,
    }),
    ("Noise schedules", "", {
        f"s4spipe.noise.{known.__name__}": known for known in (noise.NoiseSchedule, *noise.NOISE.values())
    } | {
        "s4spipe.noise.describe": noise.describe,
        "s4spipe.noise.from_description": noise.from_description,
    }),
    ("Learned families", "[All solvers](solvers.md#learned-families) compares them.", {
        "s4spipe.learning.families.make": families.make,
        "s4spipe.learning.families.Family": families.Family,
        "s4spipe.learning.families.Times": families.Times,
    } | {
        f"s4spipe.learning.families.{name}": getattr(families, name)
        for name in ("LMS", "PC", "SS", "GS", "BNS", "Free", "Fixed")
    }),
    ("Search", "[All solvers](solvers.md#search) has an example. Needs the extra `pipeline`.", {
        "s4spipe.learning.search.evolve": search.evolve,
        "s4spipe.learning.search.Settings": search.Settings,
        "s4spipe.learning.genome.Genome": Genome,
        "s4spipe.learning.genome.Step": Step,
        "s4spipe.learning.genome.of_classical": of_classical,
        "s4spipe.learning.reward.evolve_parameters": reward.evolve_parameters,
        "s4spipe.learning.reward.Settings": reward.Settings,
    }),
]  # fmt: skip
LISTS = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Raises"}


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for title, remark, entries in SECTIONS:
        parts.append(f"## {title}\n")
        parts += [f"{remark}\n"] if remark else []
        for path, entry in entries.items():
            parts += [f"### {path}\n", *(_class(path, entry) if inspect.isclass(entry) else _function(path, entry))]
    return "\n".join(parts)


def _function(path: str, function: Callable) -> Iterator[str]:
    node = _node(function)
    yield _code(f"{path}({_arguments(node)}){_result(node)}")
    yield from _docstring(function, _types(node))


def _class(path: str, cls: type) -> Iterator[str]:
    """A class: how it is made, what it is, and its own public methods and properties that have a docstring."""
    node = _node(cls)
    attributes = {
        ast.unparse(item.target): _annotation(item.annotation) for item in node.body if isinstance(item, ast.AnnAssign)
    }
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    arguments = None
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        arguments = ", ".join(_field(item) for item in node.body if isinstance(item, ast.AnnAssign))
    elif "__init__" in methods:
        arguments = _arguments(methods["__init__"])
        attributes = _types(methods["__init__"]) | attributes
    yield _code(path if arguments is None else f"{path}({arguments})")
    yield from _docstring(cls, attributes)
    for name, method in methods.items():
        if not name.startswith("_") and ast.get_docstring(method):
            yield from _method(cls, method)


def _method(cls: type, method: ast.FunctionDef) -> Iterator[str]:
    kinds = {ast.unparse(decorator) for decorator in method.decorator_list}
    kind = "property" if kinds & {"property", "cached_property"} else "class method" if "classmethod" in kinds else ""
    yield f"#### {cls.__name__}.{method.name}" + (f" ({kind})" if kind else "") + "\n"
    call = "" if kind == "property" else f"({_arguments(method)})"
    yield _code(f"{method.name}{call}{_result(method)}")
    yield from _docstring(ast.get_docstring(method) or "", _types(method))


def _node(thing: Any) -> Any:
    """The definition in the source."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))
    return ast.parse(source).body[0]


def _arguments(node: ast.FunctionDef) -> str:
    """The arguments as the source has them, without self and cls."""
    arguments = ast.parse(f"def f({ast.unparse(node.args)}): ...").body[0].args
    for argument in (*arguments.args, *arguments.kwonlyargs):
        if isinstance(argument.annotation, ast.Constant):
            argument.annotation = ast.Name(argument.annotation.value)
    arguments.args = [argument for argument in arguments.args if argument.arg not in ("self", "cls")]
    spaced = (re.sub(r"^(\w+: [^=]+)=(.*)$", r"\1 = \2", argument) for argument in _split(ast.unparse(arguments)))
    return ", ".join(spaced)


def _types(node: ast.FunctionDef) -> dict[str, str]:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return {argument.arg: _annotation(argument.annotation) for argument in arguments if argument.annotation}


def _result(node: ast.FunctionDef) -> str:
    return f" -> {_annotation(node.returns)}" if node.returns else ""


def _field(item: ast.AnnAssign) -> str:
    """A dataclass's field as an argument."""
    default = ast.unparse(item.value) if item.value else ""
    default = "..." if default.startswith("field(") else default
    return f"{ast.unparse(item.target)}: {_annotation(item.annotation)}" + (f" = {default}" if default else "")


def _annotation(node: ast.expr) -> str:
    """An annotation, without the quotes of a forward reference."""
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _code(text: str) -> str:
    """A signature, on several lines if it is long."""
    if len(text) > 100 and "(" in text:
        head, _, rest = text.partition("(")
        inner, _, tail = rest.rpartition(")")
        lines = [f"    {part}," for part in _split(inner)]
        text = "\n".join([f"{head}(", *lines, f"){tail}"])
    return f"```python\n{text}\n```\n"


def _split(arguments: str) -> list[str]:
    """The arguments, split at the commas that stand outside all brackets."""
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _docstring(thing: Any, types: dict[str, str]) -> Iterator[str]:
    """A docstring as Markdown: its prose and formulas, then the lists of arguments, then what it returns and raises."""
    text = thing if isinstance(thing, str) else inspect.getdoc(thing) or ""
    for block in re.split(r"\n\n+(?=\S)", text):
        heading, _, body = block.partition("\n")
        name = heading.removesuffix(":")
        body = textwrap.dedent(body)
        if name in LISTS and heading.endswith(":"):
            yield f"{LISTS[name]}:\n"
            yield "\n".join(_entries(body, types)) + "\n"
        elif heading == "Returns:":
            yield f"Returns: {_line(body)}\n"
        else:
            yield from _prose(block)


def _entries(body: str, types: dict[str, str]) -> Iterator[str]:
    for entry in re.split(r"\n(?=\S)", body):
        names, _, meaning = entry.partition(":")
        own = {types[name.strip()] for name in names.split(",") if name.strip() in types}
        kind = f" (`{own.pop()}`)" if len(own) == 1 else ""
        shown = ", ".join(f"`{name.strip()}`" for name in names.split(","))
        yield f"- {shown}{kind}: {_line(meaning)}"


def _prose(block: str) -> Iterator[str]:
    """Paragraphs, and what is indented as a formula."""
    for part in re.split(r"\n\n+", block):
        if part.startswith("    "):
            yield f"```text\n{textwrap.dedent(part)}\n```\n"
        else:
            yield _line(part) + "\n"


def _line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
