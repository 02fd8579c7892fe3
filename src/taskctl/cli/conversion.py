"""How the words of a command line become numbers, enumerations and texts, without pydantic.

Typer converts with pydantic, and importing that takes longer than all the rest of a command. It asks each
parameter for its converter, by `get_runtime_param`, as late as when there is a value to convert; so that is
where a converter of our own is put. Only the types that commands use are known here; a parameter of another
type is left to typer. Should a later typer not ask any more, it converts by itself and nothing breaks.
"""

from enum import Enum
from typing import Any

import typer

_KNOWN = (str, bool, int, float, list[str])


def spare_pydantic(command: Any) -> None:
    """Put `_Converter` into those parameters of a command, and of all below it, whose types it knows."""
    for parameter in command.get_params(typer.Context(command)):
        kind, info = parameter.type_descriptor.annotation, parameter.type_descriptor.parameter_info
        known = kind in _KNOWN or (isinstance(kind, type) and issubclass(kind, Enum))
        # A flag's text, such as "off", can come from an environment variable only: typer's to read.
        if known and info.parser is None and not parameter.envvar:
            parameter.get_runtime_param = _Converter
    for child in getattr(command, "commands", {}).values():
        spare_pydantic(child)


class _Converter:
    """What typer's `RuntimeParam` is: made anew for each value, and asked to `coerce` it."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value in the parameter's type.

        Raises:
            typer.BadParameter: it is none of that type, or beyond the option's bounds.
        """
        if param.multiple or param.nargs == -1:  # of texts only
            return tuple(value or ())
        if value is None:
            return None
        kind, bounds = param.type_descriptor.annotation, param.type_descriptor.parameter_info
        try:
            value = kind(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r} is not {_expected(kind)}.", ctx=ctx, param=param) from None
        if bounds.min is not None and value < bounds.min:
            raise typer.BadParameter(f"{value} is less than {bounds.min}.", ctx=ctx, param=param)
        if bounds.max is not None and value > bounds.max:
            raise typer.BadParameter(f"{value} is more than {bounds.max}.", ctx=ctx, param=param)
        return value


def _expected(kind: type) -> str:
    if issubclass(kind, Enum):
        return "one of " + ", ".join(repr(member.value) for member in kind)
    return "a whole number" if kind is int else "a number"
