"""Commands that write a repaired file: apply, repair."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptdoctor.cli.options import (
    decision_options,
    format_option,
    kwargs_of,
    model_options,
    out_option,
    probe_option,
    verbose_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptdoctor.receipt import Receipt


def writing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a file is written: ``--no-verify``, ``--max-shard-size``, ``--keep-envelope``."""
    command = click.option(
        "--keep-envelope",
        is_flag=True,
        help="Keep all else of the checkpoint (optimizer, epoch, averages) as it is; .pth only.",
    )(command)
    command = click.option(
        "--max-shard-size",
        metavar="SIZE",
        help="Write several files of at most SIZE (5GB) and their index.",
    )(command)
    return click.option(
        "--verify/--no-verify",
        default=True,
        show_default=True,
        help="Read the new file back and compare every bit.",
    )(command)


@click.command(short_help="Write a file that loads strictly: plan and apply.")
@click.argument("model")
@click.argument("checkpoint", required=False)
@click.option("--lint-fix", is_flag=True, help="Mend what `lint` finds: CKPT --lint-fix -o OUT, no MODEL.")
@model_options
@decision_options
@out_option("Where to write: .pth or .safetensors.", required=True)
@probe_option
@writing_options
@format_option("text", "json")
@verbose_option
def repair(
    model: str,
    checkpoint: str | None,
    lint_fix: bool,
    out: str,
    probe: str | None,
    verify: bool,
    max_shard_size: str | None,
    keep_envelope: bool,
    form: str,
    verbose: bool,
    **options: Any,
) -> int:
    """Write a file that loads strictly into MODEL with torch alone: plan and apply in one.

    Only when everything is safe or decided; else the questions are on stderr, nothing is written, exit 1.
    With --probe also only when the model, built for real, gives the expected outputs with the new file.
    """
    from ckptdoctor.api import write_diagnosed
    from ckptdoctor.cli.examining import examine
    from ckptdoctor.cli.output import explain_refusal
    from ckptdoctor.cli.progress import progress
    from ckptdoctor.formats.ahead import read_ahead

    if lint_fix:
        return _lint_fix(model, checkpoint, out, form)
    if checkpoint is None:
        raise click.UsageError("Missing argument 'CHECKPOINT' (without MODEL: repair CHECKPOINT --lint-fix)")
    refuse_input(out, checkpoint)
    if os.path.isfile(checkpoint):
        read_ahead([checkpoint])  # the disk works while the model is built
    found = examine(model, checkpoint, options)
    if found.verdict not in ("compatible", "repairable") or found.plan is None:
        explain_refusal(found, verbose, options["kwargs"])
        return 1
    with progress(f"{'writing and verifying' if verify else 'writing'} {os.path.basename(out)}") as tell:
        receipt = write_diagnosed(
            found,
            out,
            kwargs=kwargs_of(options["kwargs"]),
            timeout=options["timeout"],
            probe=probe,
            verify=verify,
            max_shard_size=max_shard_size,
            keep_envelope=keep_envelope,
            progress=tell,
        )
    _show(receipt, form)
    return 0


def _lint_fix(file: str, second: str | None, out: str, form: str) -> int:
    from ckptdoctor.cli.training import show_written
    from ckptdoctor.training.rewrite import lint_fix

    if second is not None:
        raise click.UsageError("--lint-fix takes the checkpoint alone, no MODEL")
    refuse_input(out, file)
    show_written(lint_fix(file, out), form)
    return 0


@click.command(short_help="Do what a plan file says.")
@click.argument("plan")
@click.argument("checkpoint", required=False)
@click.option("--model", default=None, metavar="MODEL", help="The model, if not the one that the plan names.")
@model_options
@out_option("Where to write: .pth or .safetensors.", required=True)
@probe_option
@writing_options
@format_option("text", "json")
@verbose_option
def apply(
    plan: str,
    checkpoint: str | None,
    model: str | None,
    kwargs: str,
    timeout: float,
    out: str,
    probe: str | None,
    verify: bool,
    max_shard_size: str | None,
    keep_envelope: bool,
    form: str,
    verbose: bool,
) -> int:
    """Do exactly what the file PLAN says, to CHECKPOINT or to the checkpoint that the plan names.

    A plan is bound to its checkpoint's and its model's keys, shapes and dtypes; for others it is refused.
    """
    from ckptdoctor.api import apply as run
    from ckptdoctor.api import read_plan
    from ckptdoctor.cli.progress import progress

    parsed = read_plan(plan)
    path = checkpoint or beside(parsed.source.file, plan)
    refuse_input(out, path)
    refuse_input(out, plan)
    with progress(f"{'writing and verifying' if verify else 'writing'} {os.path.basename(out)}") as tell:
        receipt = run(
            parsed,
            path,
            out=out,
            model=model,
            kwargs=kwargs_of(kwargs),
            timeout=timeout,
            probe=probe,
            verify=verify,
            max_shard_size=max_shard_size,
            keep_envelope=keep_envelope,
            progress=tell,
        )
    _show(receipt, form)
    return 0


def beside(file: str, plan: str) -> str:
    """The plan's checkpoint: as written, from here, or else from the plan's own folder."""
    if not Path(file).is_absolute() and not Path(file).exists():
        near = Path(plan).parent / file
        if near.exists():
            return str(near)
    return file


def refuse_input(out: str, path: str) -> None:
    """An output file that is one of the inputs is a mistake; nothing is overwritten in place."""
    if os.path.exists(out) and os.path.exists(path) and os.path.samefile(out, path):
        raise click.BadParameter("this is the input file itself; name another one", param_hint="-o")


def _show(receipt: Receipt, form: str) -> None:
    import sys

    if form == "json":
        from ckptdoctor.reports.json import write

        write(receipt.to_dict(), sys.stdout)
    else:
        print(receipt)
