"""A group of commands that are imported when they are needed: `kata-gpu-guest` and `kata-gpu-kbs` start fast."""

import importlib

import click


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def __init__(self, *, table: dict[str, tuple[str, str, str]], **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._table = table

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Names in alphabetical order."""
        return sorted(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that holds the command."""
        row = self._table.get(cmd_name)
        if row is None:
            from difflib import get_close_matches

            for near in get_close_matches(cmd_name, self._table, n=1):
                ctx.fail(f"No such command {cmd_name!r}. Did you mean {near!r}?")
            return None
        command = getattr(importlib.import_module(row[0]), row[1])
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help from the table, so that `--help` imports nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._table[name][2]) for name in sorted(self._table)])
