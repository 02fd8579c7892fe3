"""The `taskctl` command, and the only place where an error becomes text and an exit code.

Importing this imports nothing else, so that `--version` is answered before typer is loaded.
"""

import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from taskctl.errors import LocalError, TaskctlError, Unexpected, UsageInvalid

COMPLETE_VARIABLE = "_TASKCTL_COMPLETE"
"""Set by the shell's completion script when it asks for completions."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command line (`sys.argv`'s, without the program's name, by default) and exit.

    Nothing is raised but SystemExit: 0, an exit code of `taskctl.errors`, 1 for what nobody expected, or
    130 after an interrupt.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-V"]):  # as `root` would say it, in half the time
        from taskctl import __version__

        print(f"taskctl {__version__}")  # noqa: T201 - typer.echo is not there yet
        sys.exit(0)
    if sys.stdout is None:  # closed by the shell: `>&-`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a locale that lacks a character must not end the command
            stream.reconfigure(errors="backslashreplace")
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    try:
        code = _run(list(arguments))  # typer consumes the list
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        _discard_output()
        code = 0
    except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, one line and an exit code
        code = _report(error, options)
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run without typer's own error handling, and return the exit code of what asked for one."""
    import typer

    from taskctl.cli.root import app

    command = typer.main.get_group(app)
    if COMPLETE_VARIABLE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
        command.main(arguments, prog_name="taskctl", complete_var=COMPLETE_VARIABLE)
    try:
        with command.make_context("taskctl", arguments) as context:
            command.invoke(context)
    except typer.Exit as exit_:
        return exit_.exit_code
    except typer.Abort:  # an interrupt or an end of input while asking
        return 130
    return 0


def _report(error: Exception, options: Sequence[str]) -> int:
    import typer

    from taskctl.cli import output

    as_json = "--json" in options or "--ndjson" in options
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        if context is not None and error.message == context.get_help():  # nothing was asked for
            typer.echo(error.message, err=True)
            return error.exit_code
        hint = f" Try '{context.command_path} --help'." if context else ""
        error = UsageInvalid(" ".join(error.format_message().split()) + hint)
    elif "--debug" in options:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EIO, errno.EDQUOT}:
        error = LocalError(f"Cannot write: {os.strerror(error.errno).lower()}.")
    if not isinstance(error, TaskctlError):
        error = _unexpected(error)
    output.report(error, as_json=as_json)
    return error.exit_code


def _unexpected(error: BaseException) -> Unexpected:
    """An error that nobody expected, with its causes, in one sentence."""
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(f"{type(cause).__name__}: {cause}".removesuffix(": "))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return Unexpected(", because of ".join(causes) + "; --debug before the command shows where")


def _discard_output() -> None:
    """Send what is still buffered nowhere, so that the interpreter does not complain when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
