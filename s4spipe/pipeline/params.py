"""params.yaml as checked data: every key there and known, every value of the right type and within its range."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from s4spipe.learning.families import noisy
from s4spipe.pipeline import layout, resolve
from s4spipe.pipeline.fields import Block
from s4spipe.pipeline.layout import NONE
from s4spipe.pipeline.learner_rules import check_learner, check_reward, check_spanning
from s4spipe.pipeline.render import flow
from s4spipe.pipeline.schema import Learner, Params
from s4spipe.runtime.errors import UserError, shown, unknown
from s4spipe.sampling.tableau.form import RK45
from s4spipe.solvers import registry, timesteps
from s4spipe.solvers.timesteps import SEARCHED, Schedule

LARGEST = 100_000  # values in a parameter file
DEEPEST = 100  # lists and blocks in one another


def load(path: str | Path = layout.PARAMS) -> Params:
    """Read and check a parameter file. Raises UserError, naming the file and the key, for the first mistake in it."""
    try:
        yaml, text, depth = YAML(typ="safe"), Path(path).read_bytes(), 0  # the parser that DVC uses
        for event in yaml.parse(text):  # without the recursion of `load`, which a C parser may not survive
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"line {event.start_mark.line + 1}: more than {DEEPEST} levels of nesting")
        data = yaml.load(text)
        size = _size(data, {})
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's root") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (YAMLError, ValueError, RecursionError) as error:  # a date such as 2001-13-01 is a ValueError
        raise UserError(f"{path}: not valid YAML ({_reason(error)})") from None
    if size > LARGEST:
        raise UserError(f"{path}: its anchors and aliases make more than {LARGEST:,} values; write out what is meant")
    try:
        return parse(data, Path(path).parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _size(data: Any, known: dict[int, int]) -> int:
    """The number of values that aliases stand for if they are written out; one that holds itself counts once."""
    if not isinstance(data, list | dict):
        return 1
    if id(data) not in known:
        known[id(data)] = 1
        known[id(data)] += sum(_size(value, known) for value in (data.values() if isinstance(data, dict) else data))
    return known[id(data)]


def _reason(error: Exception) -> str:
    """What the YAML parser says, with the line, but without its picture of it."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem and mark:
        return f"line {mark.line + 1}: {' '.join(problem.split())}"
    return " ".join(str(error).split())


def parse(data: Any, root: Path = Path()) -> Params:
    """Checked parameters out of what a parameter file holds; `root` is the project's folder.

    Raises UserError, naming the key, for the first mistake.
    """
    if not isinstance(data, dict):
        raise UserError(f"must be a mapping of blocks, got {_shown(data)}")
    try:
        params = Params.model_validate(data)
    except ValidationError as error:
        raise UserError(_sentence(error, data)) from None
    for key, default in _missing(data, Params()):
        many = isinstance(default, Block | dict)
        raise UserError(f"{key}: missing; " + ("docs/reference/parameters.md has its defaults" if many else
                                               f"its default is {flow(default)}"))  # fmt: skip
    for rule in (_check_model, _check_lists, _check_noisy, _check_learners, _check_schedules, _check_counts):
        rule(params, root)
    return params


def _missing(data: dict[str, Any], defaults: Block, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a block that are not there, with their defaults; those of default None may be left out."""
    for name, default in defaults:
        if name not in data:
            if default is not None:
                yield f"{prefix}{name}", default
        elif isinstance(default, Block):
            yield from _missing(data[name], default, f"{prefix}{name}.")
        elif isinstance(default, dict):
            for kind in {type(value) for value in default.values() if isinstance(value, Block)}:
                for key, entry in data[name].items():
                    yield from _missing(entry, kind(), f"{prefix}{name}.{key}.")


def _check_model(params: Params, root: Path) -> None:
    model = params.model
    if (model.condition == "prompts") != (params.prompts != NONE):
        raise UserError(f"prompts: must name a file of prompts if model.condition is prompts, and {NONE} otherwise, "
                        f"got {shown(params.prompts)}")  # fmt: skip
    if model.condition == "prompts" and model.kind != "diffusers":
        raise UserError(f"model.condition: prompts are for text-to-image models of kind diffusers, not {model.kind}")
    if model.pipeline and model.kind != "diffusers":
        raise UserError(f"model.pipeline: only models of kind diffusers are called with arguments, not {model.kind}")
    if params.reference.source == "real" and params.fid.real == NONE:
        raise UserError("reference.source: real needs real images, named in fid.real")
    for name, file in (("perceptual", "weights"), ("fid", "features")):
        block = getattr(params, name)
        if (block.network == "random") != (getattr(block, file) == NONE):
            raise UserError(f"{name}.{file}: must be {NONE} if {name}.network is random, and name a file otherwise, "
                            f"got {shown(getattr(block, file))}")  # fmt: skip
        if (block.network == "callable") != (block.source != "none"):
            raise UserError(f"{name}.source: must be module:function if {name}.network is callable, and none "
                            f"otherwise, got {shown(block.source)}")  # fmt: skip
    if params.perceptual.network == params.fid.network == "random":
        raise UserError("perceptual.network: random is what measures FID, so solvers would be fitted to their judge; "
                        "name another one")  # fmt: skip
    if params.fid.clip != "none" and params.prompts == NONE:
        raise UserError("fid.clip: a CLIP score needs prompts; make it none")
    if params.refine.reward:
        check_reward("refine.reward", params.refine.reward, model.condition)


def _check_lists(params: Params, root: Path) -> None:
    for key in ("nfe", "classical", "fetch", "searched", "statistics_for", "learned", "refined", "spanning"):
        values = getattr(params, key)
        if len(set(values)) < len(values):
            raise UserError(f"{key}: every entry may appear only once, got {shown(values)}")
    for key, others in (("refined", ("learned",)), ("spanning", ("learned", "refined"))):
        for name, other in itertools.product(getattr(params, key), others):
            if name in getattr(params, other):
                raise UserError(f"{key}: {name} is in `{other}` too; list it in only one of them")
    if params.spanning and len(params.nfe) < 2:
        raise UserError(f"spanning: needs two or more NFEs, got nfe: {shown(params.nfe)}")
    for name in params.classical:
        if registry.needs_statistics(name) and not params.statistics_for:
            raise UserError(f"classical: {name} needs statistics of the model; add dpm_v3 to `statistics_for`")
        if name not in params.classical_schedules:
            raise UserError(f"classical_schedules.{name}: missing; give it a schedule, such as "
                            f"{', '.join(sorted(timesteps.FORMULAS))}")  # fmt: skip


def _check_noisy(params: Params, root: Path) -> None:
    """Where a sample must be a function of x_T alone, no solver may add noise on the way."""
    starts = {f"starts.{name}.solver": start.solver for name, start in params.starts.items()}
    others = {f"{key}.solver": getattr(params, key).solver for key in ("teacher", "gits", "statistics")}
    for key, name in (others | starts).items():
        if name != RK45 and registry.parse(name)[0].noisy:
            raise UserError(f"{key}: {name} adds fresh noise on the way, so that its samples are not determined by "
                            "where they start; name a solver of the ODE, such as unipc_bh2")  # fmt: skip


def _check_learners(params: Params, root: Path) -> None:
    for key in ("learned", "refined", "spanning"):
        for name in getattr(params, key):
            if name not in params.learners:
                raise UserError(f"{key}: {unknown('learner', name, params.learners)}")
    taken = {"teacher", "reference", *params.classical, *params.classical_schedules}
    for name in params.learners:
        if name in taken:
            raise UserError(f"learners.{name}: the teacher, the reference or a classical solver has this name; choose "
                            "another")  # fmt: skip
        check_learner(f"learners.{name}", _learner(params, name))
        if name not in params.starts:
            raise UserError(f"starts.{name}: missing; name the solver and the schedules that {name} starts from")
        if name in params.spanning:
            check_spanning(f"learners.{name}", _learner(params, name), params.starts[name])
        family, reward = (learner := resolve.learner(params, name)).family, learner.reward
        if name in params.refined and noisy(family):
            raise UserError(f"refined: {name} adds fresh noise, which no refinement learns; list it in `learned`")
        if reward:
            check_reward(f"learners.{name}.reward", reward, params.model.condition)
        if params.starts[name].skip and family != "free":
            raise UserError(f"starts.{name}.skip: only the family free can skip noise levels, not {family}; make it []")
    for name in params.starts:
        if name not in params.learners:
            raise UserError(f"starts: {unknown('learner', name, params.learners)}")


def _learner(params: Params, name: str) -> Learner:
    try:
        return resolve.learner(params, name)
    except ValidationError as error:
        raise UserError(f"learners.{name}.{_sentence(error, params.learners[name], Learner)}") from None


def _check_schedules(params: Params, root: Path) -> None:
    files = layout.input_schedules(root)
    for name in files:
        if name in (*timesteps.BUILT_IN, *SEARCHED, "best"):
            raise UserError(f"{files[name]}: {name} is the name of a built-in schedule; rename the file")

    def check(key: str, schedule: Schedule, *also: str) -> None:
        if schedule in SEARCHED and schedule not in params.searched:
            raise UserError(f"{key}: {schedule} has to be searched for; add it to `searched`")
        try:
            timesteps.check(schedule, {*files, *params.searched, *also})
        except UserError as error:
            raise UserError(f"{key}: {error}") from None

    for name, schedule in params.classical_schedules.items():
        check(f"classical_schedules.{name}", schedule, "best")
        if schedule == "best" and name in params.classical and params.model.kind != "digits":
            raise UserError(f"classical_schedules.{name}: the best schedules are known only for the embedded model; "
                            "name a schedule")  # fmt: skip
    for key in ("teacher", "reference"):
        check(f"{key}.schedule", getattr(params, key).schedule)
    for name, start in params.starts.items():
        if name in resolve.learned_solvers(params):
            for schedule in start.schedules:
                check(f"starts.{name}.schedules", schedule)


def _check_counts(params: Params, root: Path) -> None:
    if params.fid.count != "all" and params.fid.count > params.sample.count:
        raise UserError(f"fid.count: must be at most sample.count = {params.sample.count}, got {params.fid.count}")
    blocks: dict[str, Any] = {f"learners.{name}": resolve.learner(params, name)
                              for name in resolve.learned_solvers(params)}  # fmt: skip
    for key, learner in blocks.items():
        if learner.family in ("lms", "pc") and learner.order > min(params.nfe):
            raise UserError(f"{key}.order: must not exceed the smallest NFE, which is {min(params.nfe)}, "
                            f"got {learner.order}")  # fmt: skip
    if params.refined or params.spanning:
        blocks["refine"] = params.refine
    for key, block in blocks.items():
        for count, there in (("pairs", "train"), ("validation_pairs", "validation")):
            if getattr(block, count) > getattr(params.teacher, there):
                raise UserError(f"{key}.{count}: must be at most teacher.{there} = {getattr(params.teacher, there)}, "
                                f"got {getattr(block, count)}")  # fmt: skip


# pydantic's kinds of errors, in the words of a parameter file.
MUST_BE = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "too_short": "a list of at least {min_length}",
}


def _sentence(invalid: ValidationError, data: Any, block: type[BaseModel] = Params) -> str:
    """The first of pydantic's errors about `data`, which should be a `block`, in the words of a parameter file."""
    errors = invalid.errors()
    error, where = errors[0], _key(errors[0], data)
    if error["type"] == "extra_forbidden":
        inner: Any = block
        for part in error["loc"][:-1]:
            inner = _inside(inner, part)
        return f"{where}: {unknown('key', error['loc'][-1], inner.model_fields)}"
    if error["type"] == "missing":
        return f"{where}.{error['loc'][-1]}: missing"
    if "error" in error.get("ctx", {}):  # raised by one of the schema's validators
        return f"{where}: {error['ctx']['error']}"
    if error["type"] == "invalid_key" or (error["type"] == "string_type" and error["loc"][-1] == "[key]"):
        return f"{where or 'top level'}: keys must be strings, got {_shown(error['input'])}"
    ways = [_must_be(other) for other in errors if _key(other, data) == where]  # a number or a word, for instance
    return f"{where}: must be {' or '.join(dict.fromkeys(ways))}, got {_shown(error['input'])}"


def _key(error: ErrorDetails, data: Any) -> str:
    """Which key of `data` an error is about: its place without pydantic's own marks."""
    parts = []
    for part in error["loc"]:
        if part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int):
            parts.append(part if isinstance(part, str) and part.isprintable() and len(part) <= 80 else shown(part))
            data = data[part]
    return ".".join(parts)


def _must_be(error: ErrorDetails) -> str:
    if error["type"] in MUST_BE:
        return MUST_BE[error["type"]].format(**error.get("ctx", {}))
    return error["msg"].removeprefix("Input should be ").replace("a valid integer", "an integer").replace("valid ", "")


def _shown(value: Any) -> str:
    """A value as it stands in the file, or near enough."""
    for word, constant in {"null": None, "true": True, "false": False}.items():
        if value is constant:
            return word
    return shown(value)


def _inside(kind: Any, part: str | int) -> Any:
    """The type of a key of a block, or of a value of a mapping."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        inner = kind.model_fields[str(part)].annotation
        return get_args(inner)[0] if isinstance(inner, UnionType) else inner  # a block that may be left out
    return get_args(kind)[-1]
