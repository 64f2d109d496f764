"""The console script: `s4spipe`, or `python -m s4spipe`."""

import sys

from s4spipe.runtime.errors import MissingExtra, needs


def main() -> None:
    """Run a command. Says in a sentence which extra is missing, if only the core is installed."""
    try:
        with needs("pipeline", "s4spipe's command line"):
            from s4spipe.commands.cli import main as commands
    except MissingExtra as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    commands(prog_name="s4spipe")


if __name__ == "__main__":
    main()
