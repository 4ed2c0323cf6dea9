"""Commands that look at one thing: inspect, diff, explain."""

from __future__ import annotations

import click

from ckptdoctor.cli.options import (
    exit_zero_option,
    format_option,
    kwargs_of,
    model_options,
    out_option,
    verbose_option,
)


@click.command(short_help="Say what a checkpoint holds.")
@click.argument("checkpoint")
@click.option("--deep", is_flag=True, help="Read the bytes, too: checksums, NaN and infinite values.")
@format_option()
@out_option("Write the report to FILE.")
@verbose_option
@exit_zero_option
def inspect(checkpoint: str, deep: bool, form: str, out: str | None, verbose: bool, exit_zero: bool) -> int:
    """Say what CHECKPOINT holds, from its headers alone.

    Needs no torch and executes nothing in the file. Exits 1 when something is unusual.
    """
    from ckptdoctor.cli.inspecting import inspected

    return inspected(checkpoint, form, out, deep=deep, verbose=verbose, exit_zero=exit_zero)


@click.command(short_help="Compare two checkpoints or models.")
@click.argument("first")
@click.argument("second")
@model_options
@format_option()
@out_option("Write the report to FILE.")
@verbose_option
@exit_zero_option
def diff(
    first: str,
    second: str,
    kwargs: str,
    timeout: float,
    form: str,
    out: str | None,
    verbose: bool,
    exit_zero: bool,
) -> int:
    """Compare two checkpoints or models by key, shape, dtype and tie.

    FIRST and SECOND are checkpoints (FILE#PATH picks a state dict inside), models or .tree files. Exits 1
    when they differ.
    """
    from ckptdoctor.api import diff as compare
    from ckptdoctor.cli.output import show, text_options
    from ckptdoctor.reports.diff import diff_concise, diff_page

    found = compare(first, second, kwargs=kwargs_of(kwargs), timeout=timeout)
    show(
        form,
        out,
        page=lambda stream: diff_page(found, text_options(verbose, stream)),
        concise=lambda: diff_concise(found),
        data=found.to_dict,
    )
    return int(bool(found) and not exit_zero)


@click.command(short_help="Explain a finding (CKD101), a word of plans (rope), a recipe.")
@click.argument("code", required=False)
@format_option("text", "json")
def explain(code: str | None, form: str) -> int:
    """Say what a finding means, why it matters and what to do. CODE is CKD101 or wrapper-prefix.

    Or what an op of a plan does (rope, concat ...), or a known crossing (llama-meta). Without CODE: the list
    of all findings.
    """
    from ckptdoctor.cli.output import show
    from ckptdoctor.reports.explain import explain_page, list_page, rule_dict
    from ckptdoctor.reports.ops import find_op, op_entry, op_page
    from ckptdoctor.reports.recipes import find_recipe, recipe_entry, recipe_page
    from ckptdoctor.rules import find_rule, rules

    if code and (recipe := find_recipe(code.strip())) is not None:
        told = recipe_entry(recipe)
        show(form, None, page=lambda _: recipe_page(told), concise=lambda: "", data=told.to_dict)
        return 0
    if code and (op := find_op(code.strip())) is not None:
        entry = op_entry(op)
        show(form, None, page=lambda _: op_page(entry), concise=lambda: "", data=entry.to_dict)
        return 0
    chosen = [find_rule(code)] if code else list(rules())
    show(
        form,
        None,
        page=lambda stream: explain_page(chosen[0]) if code else list_page(chosen),
        concise=lambda: "",
        data=lambda: rule_dict(chosen[0]) if code else [rule_dict(rule) for rule in chosen],
    )
    return 0
