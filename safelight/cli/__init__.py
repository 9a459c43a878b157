"""The command line. One small file per group of commands; each command imports what it needs when it runs, so that
`--help` is quick."""

from __future__ import annotations


def main() -> None:
    """The entry point `safelight`. Ends the interpreter: 0 done, 1 failed with a line on stderr, 2 wrong usage,
    130 interrupted."""
    from safelight.cli.root import build_app

    build_app()(prog_name="safelight")
