"""Files of prompts, for text-to-image models."""

from pathlib import Path

from s4spipe.errors import UserError


def read(path: str | Path) -> list[str]:
    """The prompts of a text file, one a line. Raises UserError if there are none."""
    try:
        prompts = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file of prompts, one a line") from None
    if not prompts:
        raise UserError(f"{path}: holds no prompts; write one a line")
    return prompts
