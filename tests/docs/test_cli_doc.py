"""docs/cli.md knows every command, every flag, and nothing that does not exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import typer.main

from safelight.cli.root import build_app

TEXT = (Path(__file__).parent.parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")


def leaves() -> Iterator[tuple[str, object]]:
    root = typer.main.get_command(build_app())
    for name, command in root.commands.items():
        if not hasattr(command, "commands"):
            yield name, command
            continue
        for member, leaf in command.commands.items():
            yield f"{name} {member}", leaf


def sections() -> dict[str, str]:
    """Heading of each command -> the text under it."""
    parts = re.split(r"^### `safelight ([a-z -]+?)(?: [A-Z\[].*)?`$", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_is_documented_and_no_other():
    assert set(sections()) == {name for name, _ in leaves()}


def test_every_flag_is_documented_under_its_command_or_as_common():
    common = TEXT.split("\n## ", 2)[1]
    documented = sections()
    missing = [
        f"{name} {flag}"
        for name, command in leaves()
        for parameter in command.params
        for flag in parameter.opts
        if flag.startswith("--") and f"`{flag}" not in documented[name] and f"`{flag}" not in common
    ]
    assert missing == []


def test_no_flag_is_documented_that_does_not_exist():
    parameters = [parameter for _, command in leaves() for parameter in command.params]
    known = {flag for each in parameters for flag in (*each.opts, *each.secondary_opts)}
    known |= {"--version", "--help"}
    assert set(re.findall(r"`(--[a-z-]+)", TEXT)) <= known
