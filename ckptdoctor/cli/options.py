"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from ckptdoctor.cli.output import FORMATS

F = TypeVar("F", bound=Callable[..., Any])


def format_option(*formats: str) -> Callable[[F], F]:
    """``--format``; text for people, concise for logs, json for programs."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(formats or FORMATS),
        default="text",
        show_default=True,
        help="How to print the result.",
    )


def out_option(words: str, *, required: bool = False) -> Callable[[F], F]:
    """``-o FILE``."""
    return click.option(
        "-o",
        "--output",
        "out",
        type=click.Path(dir_okay=False),
        required=required,
        metavar="FILE" if not required else "OUT",
        help=words,
    )


probe_option = click.option(
    "--probe",
    type=click.Path(dir_okay=False),
    default=None,
    metavar="FILE",
    help='Run the model on {"inputs": ..., "expected": ...} (torch.save) before the result is kept.',
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Show every line, fold and cut nothing.")
exit_zero_option = click.option("--exit-zero", is_flag=True, help="Exit 0 also when there are findings.")


def model_options(command: F) -> F:
    """How a model is built: ``--kwargs``, ``--timeout``."""
    command = click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="How long building the model may take.",
    )(command)
    return click.option(
        "--kwargs",
        default="",
        metavar="JSON",
        help="""Arguments for the model, e.g. '{"num_classes": 10}'.""",
    )(command)


def decision_options(command: F) -> F:
    """``--reinit``, ``--drop``, ``--rename`` and so on, one for each kind; each can be repeated."""
    from ckptdoctor.decisions import FORMS, KINDS

    metavars = {**FORMS, "choose": "PATH", "accept": "NAME"}
    for kind, words in reversed(KINDS.items()):
        command = click.option(
            f"--{kind}",
            multiple=True,
            metavar=metavars.get(kind, "PATTERN"),
            help=f"Decide: {words.removeprefix(FORMS.get(kind, '') + ': ')}.",
        )(command)
    return command


def decisions_of(options: Mapping[str, Any]) -> list[str]:
    """The decision flags as texts (``"reinit=fc.**"``)."""
    from ckptdoctor.decisions import KINDS

    return [f"{kind}={value}" for kind in KINDS for value in options.get(kind, ())]


def kwargs_of(text: str) -> dict[str, Any] | None:
    """The ``--kwargs`` value; raises a usage error that says what is wrong with it."""
    if not text:
        return None
    import json

    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise click.BadParameter(
            f"this is no JSON ({error}); expected e.g. '{{\"num_classes\": 10}}'", param_hint="--kwargs"
        ) from None
    if not isinstance(value, dict):
        raise click.BadParameter(
            "expected a JSON object, e.g. '{\"num_classes\": 10}'", param_hint="--kwargs"
        )
    return value
