"""Commands on a file alone: lint, strip, extract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptdoctor.cli.options import exit_zero_option, format_option, out_option, verbose_option

if TYPE_CHECKING:
    from ckptdoctor.training.rewrite import Written


@click.command(short_help="Find habits in a checkpoint that hurt later.")
@click.argument("checkpoint")
@click.option("--deep", is_flag=True, help="Read the bytes, too: checksums, NaN, how far averages are apart.")
@format_option()
@out_option("Write the report to FILE.")
@verbose_option
@exit_zero_option
def lint(checkpoint: str, deep: bool, form: str, out: str | None, verbose: bool, exit_zero: bool) -> int:
    """Find what makes CHECKPOINT hard to load elsewhere, each with the command that mends it.

    Wrapper names in keys, device tags, pickled code, hidden storage, an optimizer inside, private paths, lost
    metadata. Needs no model. Exits 1 when something should be mended.
    """
    from dataclasses import replace

    from ckptdoctor.api import inspect as read
    from ckptdoctor.cli.output import show, text_options
    from ckptdoctor.reports.contents import inspect_concise, inspect_dict
    from ckptdoctor.reports.lint import lint_page
    from ckptdoctor.training.lint import lint as check

    archive = read(checkpoint)
    archive = replace(archive, diagnostics=check(archive, deep=deep))
    show(
        form,
        out,
        page=lambda stream: lint_page(archive, text_options(verbose, stream)),
        concise=lambda: inspect_concise(archive),
        data=lambda: inspect_dict(archive),
    )
    return int(any(d.severity != "note" for d in archive.diagnostics) and not exit_zero)


choose_option = click.option(
    "--choose", default="", metavar="PATH", help="Which state dict: its path in the file, `ema` or `raw`."
)


@click.command(short_help="Write the weights of a checkpoint alone.")
@click.argument("checkpoint")
@choose_option
@out_option("Where to write: .pth or .safetensors.", required=True)
@format_option("text", "json")
def strip(checkpoint: str, choose: str, out: str, form: str) -> int:
    """Write the weights of CHECKPOINT without optimizer, schedule, metadata and wrapper names.

    Where there are several state dicts (averaged and trained weights), --choose says which.
    """
    from ckptdoctor.cli.repairing import refuse_input
    from ckptdoctor.training.rewrite import extract as write

    refuse_input(out, checkpoint)
    show_written(write(checkpoint, out, choose=choose), form)
    return 0


@click.command(short_help="Write a part of a checkpoint: averages, one submodule.")
@click.argument("checkpoint")
@click.argument("submodule", required=False, default="")
@choose_option
@click.option("--keep-prefix", is_flag=True, help="Keep the submodule's name in the keys.")
@out_option("Where to write: .pth or .safetensors.", required=True)
@format_option("text", "json")
def extract(checkpoint: str, submodule: str, choose: str, keep_prefix: bool, out: str, form: str) -> int:
    """Write the weights under SUBMODULE (such as backbone), or those that --choose names.

    `--choose ema` takes averaged weights, also where their names lost their dots (LitEma).
    """
    from ckptdoctor.cli.repairing import refuse_input
    from ckptdoctor.training.rewrite import extract as write

    if not submodule and not choose:
        raise click.UsageError(
            "say what to extract: a SUBMODULE, or --choose PATH; `strip` takes all weights"
        )
    refuse_input(out, checkpoint)
    show_written(write(checkpoint, out, choose=choose, submodule=submodule, keep_prefix=keep_prefix), form)
    return 0


def show_written(written: Written, form: str) -> None:
    """What was written, as text or JSON."""
    import sys

    from ckptdoctor.keys import printable

    if form == "json":
        from ckptdoctor.reports.json import write

        write(written.to_dict(), sys.stdout)
    else:
        print("\n".join(printable(line) for line in str(written).splitlines()))
