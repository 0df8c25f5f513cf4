"""The three command lines have one form, and their reference pages are what the programs say."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from deploy.cli_reference import PROGRAMS, context_of, leaves, main, render_reference

ROOT = Path(__file__).resolve().parent.parent.parent


def groups(path: str, group: click.Group) -> Iterator[tuple[str, click.Group]]:
    """A group and those below it, by what people type."""
    yield path.replace(" ", "-"), group
    context = click.Context(group)
    for name in group.list_commands(context):
        child = group.get_command(context, name)
        if isinstance(child, click.Group):
            yield from groups(f"{path} {name}", child)


LEAVES = [
    pytest.param(command, id=context.command_path.replace(" ", "-"))
    for program, group in PROGRAMS.items()
    for command, context in leaves(group, context_of(group, program, None))
]
GROUPS = [pytest.param(group, id=path) for program, top in PROGRAMS.items() for path, group in groups(program, top)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_reference_is_what_the_program_says(program: str) -> None:
    page = ROOT / "docs/cli" / f"{program}.md"
    assert page.read_text() == render_reference(program, PROGRAMS[program]), "run `make docs`"


def test_make_docs_writes_what_the_tests_compare(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")}
    assert written == {"doctor.md", *(f"cli/{program}.md" for program in PROGRAMS)}
    assert main([]) == 2


@pytest.mark.parametrize("command", LEAVES)
def test_help_shows_an_example(command: click.Command) -> None:
    assert "Example" in (command.help or "")


@pytest.mark.parametrize("command", GROUPS)
def test_help_of_a_group_shows_an_example(command: click.Group) -> None:
    assert "Example" in (command.help or "")


@pytest.mark.parametrize("command", LEAVES)
def test_shell_completes_files(command: click.Command) -> None:
    """Whatever names a file or folder is of a type that a shell completes."""
    files = [p for p in command.params if p.name in {"file", "files", "store"} or p.metavar in {"FILE", "[DIR]", "DIR"}]
    assert [p.name for p in files if not isinstance(p.type, click.Path | click.File)] == []


@pytest.mark.parametrize("command", LEAVES)
def test_every_option_says_what_it_does(command: click.Command) -> None:
    silent = [p.opts[0] for p in command.params if isinstance(p, click.Option) and not p.hidden and not p.help]
    assert silent == []


@pytest.mark.parametrize("command", LEAVES)
def test_output_means_text_or_json_everywhere(command: click.Command) -> None:
    for parameter in command.params:
        if "--output" in parameter.opts and isinstance(parameter.type, click.Choice):
            assert {"text", "json"} <= set(parameter.type.choices)
            assert parameter.default == "text"


@pytest.mark.parametrize("program", PROGRAMS)
def test_shell_completes_commands_and_options(program: str) -> None:
    group = PROGRAMS[program]
    complete = BashComplete(group, {}, program, f"_{program.upper().replace('-', '_')}_COMPLETE")
    names = {item.value for item in complete.get_completions([], "")}
    assert names == set(group.list_commands(context_of(group, program, None)))
    assert "--version" in {item.value for item in complete.get_completions([], "--v")}
