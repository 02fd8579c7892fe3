"""Groups of commands that are loaded when they are asked for, so that a command pays for no other."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from taskctl.cli.conversion import spare_pydantic

Part = Callable[[typer.Typer], None]
"""Adds some commands to the app that it is given."""


class LoadingGroup(TyperGroup):
    """A group that knows of each command, by name, which part has it, and loads that part alone."""

    parts: ClassVar[Mapping[tuple[str, ...], Part]]
    """Names of commands, in the order of the help, and what adds them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._unloaded = dict(self.parts)
        spare_pydantic(self)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Look a command up, in the part that has it."""
        self._load([names for names in self._unloaded if cmd_name in names])
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """Load all parts, because `--help` and completion show all commands."""
        del ctx
        self._load(list(self._unloaded))
        return [name for names in self.parts for name in names]

    def _load(self, parts: list[tuple[str, ...]]) -> None:
        for names in parts:
            app = typer.Typer(rich_markup_mode=None)
            self._unloaded.pop(names)(app)
            group = typer.main.get_group(app)
            spare_pydantic(group)
            self.commands.update(group.commands)
