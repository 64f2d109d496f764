"""Renders params.yaml and its reference page from the schema, the one place that says what a key means."""

import json
import re
import textwrap
from io import StringIO
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML, YAMLError

from s4spipe.pipeline.fields import Block
from s4spipe.pipeline.schema import Params

WIDTH = 120
COLUMN = 26  # where comments stand, if there is room
ORDINARY = re.compile(r"([\w .,/+{}[\]-]|: )*")
HEADER = (
    "The pipeline's parameters. A changed value re-runs the stages of dvc.yaml that read it, and what depends on them. "
    "docs/reference/parameters.md has every key with its type, default and meaning."
)


def params_yaml(values: dict[str, Any]) -> str:
    """The text of a parameter file: `values` in the schema's order, with the schema's descriptions as comments."""
    lines = textwrap.wrap(HEADER, WIDTH, initial_indent="# ", subsequent_indent="# ")
    for name, field in Params.model_fields.items():
        lines += ["", *textwrap.wrap(field.description or "", WIDTH, initial_indent="# ", subsequent_indent="# ")]
        lines += _entry(name, values[name], field.default)
    return "\n".join(lines) + "\n"


def _entry(name: str, value: Any, default: Any) -> list[str]:
    """The lines of one key of the top level."""
    if isinstance(default, Block):
        lines = [f"{name}:"]
        for key, field in type(default).model_fields.items():
            line = f"  {key}: {flow(value[key])}" if key in value else f"  # {key}: null"
            lines += _with_comment(line, field.description or "")
        return lines
    if isinstance(value, dict) and value:
        return [f"{name}:", *(line for key, entry in value.items() for line in _mapping(key, entry))]
    line = f"{name}: {flow(value)}"
    if len(line) > WIDTH and isinstance(value, list):
        return [f"{name}:", *(f"  - {flow(entry)}" for entry in value)]
    return [line]


def _mapping(name: str, value: Any) -> list[str]:
    """An entry of a mapping, on one line if it fits."""
    line = f"  {name}: {flow(value)}"
    if len(line) <= WIDTH or not isinstance(value, dict):
        return [line]
    return [f"  {name}:", *(f"    {key}: {flow(entry)}" for key, entry in value.items())]


def _with_comment(line: str, comment: str) -> list[str]:
    if not comment:
        return [line]
    whole = f"{line.ljust(COLUMN - 1)} # {comment}"
    return [whole] if len(whole) <= WIDTH else [*_wrapped(comment), line]


def _wrapped(comment: str) -> list[str]:
    return textwrap.wrap(comment, WIDTH, initial_indent="  # ", subsequent_indent="  # ")


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    yaml, out = YAML(typ="safe", pure=True), StringIO()  # the emitter in C differs, and may not be there
    yaml.default_flow_style, yaml.width = True, 10**6
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(value, out)
    text = out.getvalue().removesuffix("\n...\n").strip()
    if ORDINARY.fullmatch(text):
        return text
    try:  # ruamel writes a few strings so that it reads something else, or over several lines
        right = "\n" not in text and YAML(typ="safe").load(f"key: {text}") == {"key": value}
    except YAMLError:
        right = False
    if right:
        return text
    quoted = json.dumps(value, ensure_ascii=False)  # YAML too, but for characters that end its lines, and are none
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]", lambda c: f"\\u{ord(c[0]):04x}", quoted)


def reference() -> str:
    """The text of docs/reference/parameters.md: every key with its type, default and meaning."""
    lines = [
        "# Parameters",
        "",
        "Every key of [params.yaml](../../params.yaml), in the same order. The defaults are those of the embedded "
        "model; `s4spipe preset NAME` sets those of a published one. Keys with the default - may be left out.",
        "",
        "This page is rendered from the schema by `python -m s4spipe.pipeline.render`.",
    ]
    for name, field in Params.model_fields.items():
        lines += ["", f"## {name}", "", field.description or ""]
        default = field.default
        inner = _block_of(field)
        if inner is None and not isinstance(default, dict):
            lines += ["", f"Type: {_type(field.annotation)}. Default: `{flow(default)}`."]
        if inner is not None:
            lines += ["", "| key | type | default | meaning |", "|---|---|---|---|"]
        for key, entry in inner.model_fields.items() if inner is not None else ():
            own = getattr(default, key) if isinstance(default, Block) else entry.default
            shown = "-" if own is None else f"`{flow(_plain(own))}`"
            meaning = (entry.description or "").replace("|", "\\|")
            lines.append(f"| `{key}` | {_type(entry.annotation)} | {shown} | {meaning} |")
        if isinstance(default, dict):
            lines += ["", "Default:", "", "```yaml", *_entry(name, _plain(default), default), "```"]
    return "\n".join(lines) + "\n"


def _block_of(field: FieldInfo) -> type[BaseModel] | None:
    """The block behind a key: its own, or that of a mapping's values."""
    if isinstance(field.default, Block):
        return type(field.default)
    values = list(field.default.values()) if isinstance(field.default, dict) else []
    return type(values[0]) if values and isinstance(values[0], Block) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Block):
        return {key: _plain(entry) for key, entry in value.model_dump(exclude_none=True).items()}
    return {key: _plain(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def _type(annotation: Any) -> str:
    """A type in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _type(args[0])
    if origin is Literal:
        return " or ".join(f"`{flow(choice)}`" for choice in args)
    if origin is list:
        inner = _type(args[0])
        return f"list of ({inner})" if " " in inner else f"list of {inner}s"
    if origin is dict:
        return "mapping"
    if args:
        return " or ".join(_type(arg) for arg in args if arg is not type(None))
    return {"str": "string", "int": "integer", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), "mapping" if isinstance(annotation, type) else "any"
    )


if __name__ == "__main__":
    from pathlib import Path

    Path("params.yaml").write_text(params_yaml(_plain(Params())), encoding="utf-8")
    Path("docs/reference/parameters.md").write_text(reference(), encoding="utf-8")
