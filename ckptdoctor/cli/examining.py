"""Commands that compare a checkpoint with a model: diagnose, plan."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from ckptdoctor.cli.options import (
    decision_options,
    decisions_of,
    exit_zero_option,
    format_option,
    kwargs_of,
    model_options,
    out_option,
    verbose_option,
)

if TYPE_CHECKING:
    from ckptdoctor.diagnosis import Diagnosis

FORMS = ("python", "hook", "mmengine", "transformers")  # those of `ckptdoctor.plan.export`


def examine(model: str, checkpoint: str, options: dict[str, Any], reporter: Any = None) -> Diagnosis:
    """Diagnose with the flags of the command line."""
    if is_source(checkpoint) and not is_source(model):
        raise click.UsageError(f"MODEL comes first, then CHECKPOINT: {shlex.join([checkpoint, model])}")
    from ckptdoctor.api import diagnose as check

    return check(
        model,
        checkpoint,
        decisions=decisions_of(options),
        kwargs=kwargs_of(options["kwargs"]),
        timeout=options["timeout"],
        reporter=reporter,
    )


def is_source(text: str) -> bool:
    """Python code, ``model.py`` or ``model.py:Net``, which no checkpoint is."""
    return text.partition(":")[0].endswith(".py")


@click.command(short_help="Say whether a checkpoint loads, why not, and what repairs it.")
@click.argument("model")
@click.argument("checkpoint")
@model_options
@decision_options
@click.option("--expand", is_flag=True, help="Print the whole alignment as a table, key by key.")
@click.option("--optimizer", is_flag=True, help="Also say whether the optimizer state can be resumed.")
@click.option("--trace", is_flag=True, help="Print on stderr why each pair was matched or not.")
@format_option()
@out_option("Write the report to FILE.")
@verbose_option
@exit_zero_option
def diagnose(
    model: str,
    checkpoint: str,
    expand: bool,
    optimizer: bool,
    trace: bool,
    form: str,
    out: str | None,
    verbose: bool,
    exit_zero: bool,
    **options: Any,
) -> int:
    """Say whether CHECKPOINT loads into MODEL, why not, and what repairs it.

    Writes nothing. Exits 0 only when it loads strictly as it is.
    """
    from ckptdoctor.cli.output import show_diagnosis

    reporter = None
    if trace:
        from ckptdoctor.align.reporter import TextReporter

        reporter = TextReporter()
    found = examine(model, checkpoint, options, reporter)
    if reporter is not None:
        from ckptdoctor.reports.trace import write_trace

        write_trace(reporter, sys.stderr)
    blocked = False
    if optimizer:
        from ckptdoctor.cli.ending import say
        from ckptdoctor.training.checks import optimizer_findings

        before = len(found.diagnostics)
        found, words = optimizer_findings(found, checkpoint)
        blocked = any(d.severity != "note" for d in found.diagnostics[before:])
        if words and not blocked:
            say(words)
    show_diagnosis(found, form, out, verbose, options["kwargs"], expand)
    return int((not found.ok or blocked) and not exit_zero)


@click.command(short_help="Write the repair as a file to review.")
@click.argument("model")
@click.argument("checkpoint")
@model_options
@decision_options
@click.option(
    "--format",
    "form",
    type=click.Choice(("toml", *FORMS)),
    default="toml",
    show_default=True,
    help="toml is what apply takes; the others need no ckptdoctor.",
)
@out_option("Write the plan to FILE instead of stdout.")
@verbose_option
def plan(model: str, checkpoint: str, form: str, out: str | None, verbose: bool, **options: Any) -> int:
    """Write the repair as a plan (TOML) that can be reviewed, committed and applied.

    For people without ckptdoctor: python is a script and hook a load_state_dict pre-hook, both with torch
    only; mmengine (revise_keys) and transformers (key_mapping) are tables of renames.
    Exits 1, with the open questions on stderr and no plan, while something is undecided.
    """
    from ckptdoctor.cli.ending import say
    from ckptdoctor.cli.output import explain_refusal, opened
    from ckptdoctor.keys import printable

    found = examine(model, checkpoint, options)
    if found.verdict not in ("compatible", "repairable") or found.plan is None:
        explain_refusal(found, verbose, options["kwargs"])
        return 1
    text = _written(found, form)
    with opened(out) as stream:
        stream.write(text)
    for words in found.plan.warning:
        say(f"warning: {printable(words)}")
    if out is not None and form != "toml":
        say(f"wrote {printable(out)}; it needs no ckptdoctor")
    elif out is not None:
        steps = len(found.plan.step)
        say(
            f"wrote {printable(out)}: {steps} step{'' if steps == 1 else 's'}; review it, then: "
            f"ckptdoctor apply {printable(out)} -o OUT"
        )
    return 0


def _written(found: Diagnosis, form: str) -> str:
    assert found.plan is not None and found.source is not None  # there is a verdict
    if form == "toml":
        from ckptdoctor.plan import to_toml

        return to_toml(found.plan)
    from ckptdoctor.plan.export import export

    return export(found.plan, found.source, found.target.tree, form)
