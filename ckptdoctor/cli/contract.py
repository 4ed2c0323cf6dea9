"""Commands for the contract with published checkpoints: lock, check, migrate, release, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ckptdoctor.cli.options import decision_options, decisions_of, out_option, verbose_option

CHECK_FORMATS = ("text", "concise", "json", "github", "markdown", "sarif", "junit", "gitlab")

model_option = click.option("--model", metavar="NAME", help="Only this model or variant.")
against_option = click.option(
    "--against",
    metavar="REF",
    help="A commit: its migrations and releases have to be here, and its models' checkpoints to load.",
)


@click.command(short_help="Write the trees of the project's models.")
@model_option
def lock(model: str | None) -> int:
    """Build every model of [tool.ckptdoctor] and write its keys, shapes and dtypes to ckpt/NAME.tree."""
    from ckptdoctor.contract.write import write_locks

    for file, changed in write_locks(Path(), model).files:
        print(f"wrote {file}" if changed else f"{file} is up to date")
    return 0


@click.command(short_help="Check the project's models against published checkpoints.")
@against_option
@model_option
@click.option("--no-build", is_flag=True, help="Take the committed trees for the models; needs no torch.")
@click.option(
    "--format",
    "form",
    type=click.Choice(CHECK_FORMATS),
    default="text",
    show_default=True,
    help="How to print the result.",
)
@out_option("Write the report to FILE.")
@verbose_option
def check(
    against: str | None, model: str | None, no_build: bool, form: str, out: str | None, verbose: bool
) -> int:
    """Check every model of [tool.ckptdoctor] against its committed tree, its releases and its migrations.

    Writes nothing. Exits 1 when something has to be done, and 2 when something could not be checked.
    """
    from ckptdoctor.cli.output import opened
    from ckptdoctor.contract import check_project
    from ckptdoctor.reports.check import write_report, write_step_summary

    report = check_project(Path(), against=against, build=not no_build, model=model)
    with opened(out) as stream:
        write_report(report, form, stream, verbose=verbose)
    if form == "github":
        write_step_summary(report)
    return report.exit_code


@click.command(short_help="Show or write the migrations that are missing.")
@model_option
@against_option
@click.option("--write", is_flag=True, help="Write them to ckpt/migrations.")
@decision_options
def migrate(model: str | None, against: str | None, write: bool, **options: Any) -> int:
    """Show the migrations that releases need to load into the models, or write them.

    Decisions (--reinit, --drop, --rename ...) go into the migrations. Exits 1 when one is missing or a
    release has no safe one.
    """
    from ckptdoctor.contract.write import migrate as make
    from ckptdoctor.decisions import parse_decisions
    from ckptdoctor.reports.check import write_migrations

    decisions = parse_decisions(decisions_of(options))
    report, paths = make(Path(), model=model, against=against, decisions=decisions, write=write)
    return write_migrations(report, paths, write)


@click.group(short_help="Keep the trees of published checkpoints.")
def release() -> None:
    """Keep the trees of published checkpoints, which models are checked against."""


@release.command("add", short_help="Keep a published checkpoint's tree.")
@click.argument("version")
@click.argument("checkpoint")
@model_option
def release_add(version: str, checkpoint: str, model: str | None) -> int:
    """Write the keys, shapes and dtypes of CHECKPOINT to ckpt/releases/NAME/VERSION.tree.

    CHECKPOINT is a file, or FILE#PATH for a state dict inside it. Only headers are read.
    """
    from ckptdoctor.contract.write import add_release

    added = add_release(Path(), version, checkpoint, model)
    state = "wrote" if added.written else "unchanged:"
    print(f"{state} {added.file}  {added.tensors:,} tensors; commit it, then: ckptdoctor check")
    return 0


@click.command(short_help="Check that the contract's files can be read.")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
def files(paths: tuple[Path, ...]) -> int:
    """Read .tree files, migrations, plans and settings, and say what is wrong with them. Needs no torch.

    Without PATHS: all of the project, and whether its migrations are an unbroken chain.
    """
    from ckptdoctor.contract.look import look_around, look_at
    from ckptdoctor.keys import printable

    if paths:
        problems, read = look_at(paths)
        findings: list[str] = []
    else:
        problems, found, read = look_around(Path())
        findings = [f"{printable(d.place)}: {d.code} {d.title}" for d in found]
    for words in (*problems, *findings):
        print(words)
    if not problems and not findings:
        print(f"{read:,} file{'' if read == 1 else 's'} read, all fine")
    return int(bool(problems or findings))
