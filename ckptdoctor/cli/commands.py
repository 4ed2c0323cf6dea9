"""All commands; only the asked one is imported."""

from __future__ import annotations

from importlib import import_module

import click

from ckptdoctor import __version__

# Command -> the module that has it, in the order of --help. Only the asked one is imported.
COMMANDS = {
    **dict.fromkeys(("inspect",), "looking"),
    **dict.fromkeys(("diagnose", "plan"), "examining"),
    **dict.fromkeys(("apply", "repair"), "repairing"),
    **dict.fromkeys(("diff", "explain"), "looking"),
    **dict.fromkeys(("lint", "strip", "extract"), "training"),
    **dict.fromkeys(("lock", "check", "migrate", "release", "files"), "contract"),
}


class _Commands(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(f"ckptdoctor.cli.{module}"), cmd_name)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 loads strictly as it is, or done; 1 findings or open questions; 2 could not check.",
)
@click.version_option(__version__, "--version", "-V", message="ckptdoctor %(version)s")
def group() -> None:
    """Why does this PyTorch checkpoint not load, and what repairs it, provably?

    MODEL is model.py, model.py:factory_or_class, package.module:name, a reference checkpoint or a .tree file.
    Nothing in a checkpoint is ever executed.
    """
