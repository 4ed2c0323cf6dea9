"""What ``ckptdoctor inspect`` does, without click."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from ckptdoctor.cli.output import show, text_options
from ckptdoctor.inspecting import inspect
from ckptdoctor.reports.contents import inspect_concise, inspect_dict

if TYPE_CHECKING:
    from ckptdoctor.reports.page import Page


def inspected(
    checkpoint: str,
    form: str,
    out: str | None = None,
    *,
    deep: bool = False,
    verbose: bool = False,
    exit_zero: bool = False,
) -> int:
    """Show what a checkpoint holds; the exit code."""
    archive = inspect(checkpoint, deep=deep)

    def page(stream: TextIO) -> Page:
        from ckptdoctor.reports.inspect import inspect_page

        return inspect_page(archive, text_options(verbose, stream))

    show(
        form,
        out,
        page=page,
        concise=lambda: inspect_concise(archive),
        data=lambda: inspect_dict(archive),
    )
    unusual = any(d.severity != "note" for d in archive.diagnostics)
    return int(unusual and not exit_zero)
