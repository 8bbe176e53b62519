# SPDX-License-Identifier: Apache-2.0
"""The ``shplb`` command: registers the commands, each a module of its own, and turns errors into one sentence."""

import sys

import typer

from shplb.commands.calibrate import calibrate
from shplb.commands.compare import compare
from shplb.commands.doctor import doctor
from shplb.commands.messages import say
from shplb.commands.pad import pad
from shplb.commands.plan import plan
from shplb.commands.profile import profile
from shplb.commands.quickstart import quickstart
from shplb.commands.report import report
from shplb.commands.show import show
from shplb.commands.simulate import simulate
from shplb.exit_codes import EPILOG
from shplb.patching.command import app as patch_app

app = typer.Typer(
    name="shplb",
    help="Head-adaptive sparse prefill attention for SGLang, balanced over tensor-parallel GPUs.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (profile, plan, compare, show, report, simulate, calibrate, doctor, pad, quickstart):
    app.command(epilog=EPILOG)(command)
app.add_typer(patch_app, name="patch", help="Apply, check or revert the patch of the pinned SGLang.", epilog=EPILOG)


def main() -> None:
    """Console entry: a user's mistake is one sentence and exit code 1, never a traceback."""
    from shplb import Infeasible
    from shplb.errors import UserError
    from shplb.processes import interrupt_on_sigterm

    interrupt_on_sigterm()
    try:
        app()
    except ImportError as error:
        say(f"shplb: {error}; run `make env`, or install shplb with its extras.")
        sys.exit(1)
    except (ValueError, OSError, UserError, Infeasible) as error:
        say(f"shplb: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
