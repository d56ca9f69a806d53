"""`python -m scenarios VERB DIRECTORY`: what can be done with the directory of a run; `list` shows all plug-ins,
and `launch --processes N SCRIPT ...` runs a script in several processes that compute together."""

import sys

import tyro

from modulekit.errors import CheckpointError
from scenarios import launching
from scenarios.commands import VERBS
from scenarios.plugins import PluginError


def main() -> None:
    """Reads the command line and does what it says; errors of the user's are said in a line."""
    if sys.argv[1:2] == ["launch"]:  # what follows the script is the script's own
        raise SystemExit(launching.main(sys.argv[2:]))
    try:
        tyro.extras.subcommand_cli_from_dict(VERBS, prog="python -m scenarios", description=__doc__)
    except (CheckpointError, FileNotFoundError, FileExistsError, PluginError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
