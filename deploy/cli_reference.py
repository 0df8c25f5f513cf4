"""`make docs`: pages rendered from what runs, docs/cli from the commands and docs/doctor.md from the table of checks.

Tests render again and compare.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from attestation.cli.main import cli as broker
from attestation.guest.main import cli as guest
from kata_gpu.cli.main import cli as node
from kata_gpu.core.doctor import SECTIONS
from kata_gpu.core.doctor.render import render_document

PROGRAMS: dict[str, click.Group] = {"kata-gpu": node, "kata-gpu-kbs": broker, "kata-gpu-guest": guest}
WIDTH = 100  # of the help texts, whatever the terminal


def leaves(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Every command that does something, depth first, in the order of the names."""
    if not isinstance(command, click.Group):
        yield command, context
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        if child is not None and not child.hidden:
            yield from leaves(child, context_of(child, name, context))


def context_of(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    """The context that help is rendered in; click keeps the help option of the first one that a command sees."""
    settings = dict(command.context_settings) | {"terminal_width": WIDTH, "max_content_width": WIDTH, "color": False}
    return click.Context(command, info_name=name, parent=parent, **settings)


def render_reference(program: str, group: click.Group) -> str:
    """The page of one program in Markdown: its own help, then every command's."""
    root = context_of(group, program, None)
    lines = [f"# {program}", "", "Rendered from the program by `make docs`.", "", *_help(group, root)]
    for command, context in leaves(group, root):
        lines += [f"## {context.command_path}", "", *_help(command, context)]
    return "\n".join(lines)


def _help(command: click.Command, context: click.Context) -> list[str]:
    return ["```text", command.get_help(context), "```", ""]


def main(argv: list[str] | None = None) -> int:
    """Write the pages below the folder that is named."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m deploy.cli_reference FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    (folder / "cli").mkdir(parents=True, exist_ok=True)
    for program, group in PROGRAMS.items():
        (folder / "cli" / f"{program}.md").write_text(render_reference(program, group))
    (folder / "doctor.md").write_text(render_document(SECTIONS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
