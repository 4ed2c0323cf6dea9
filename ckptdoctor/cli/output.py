"""Where results go: stdout or the file of ``-o``, as text, concise lines or JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from ckptdoctor.diagnosis import Diagnosis
    from ckptdoctor.reports.finding import Options
    from ckptdoctor.reports.page import Page

FORMATS = ("text", "concise", "json")


@contextmanager
def opened(out: str | None) -> Iterator[TextIO]:
    """Stdout, or the file, replaced only when everything was written."""
    if out is None or out == "-":
        yield sys.stdout
        return
    import os
    from pathlib import Path

    from ckptdoctor.writers.text import text_file

    folder = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(folder):
        import click

        raise click.BadParameter(f"there is no folder {folder}", param_hint="-o")
    with text_file(Path(out)) as stream:
        yield stream


def text_options(verbose: bool, stream: TextIO, kwargs: str = "") -> Options:
    """The text report's options for this stream."""
    from ckptdoctor.reports.finding import Options
    from ckptdoctor.reports.page import width

    return Options(width=width(stream), verbose=verbose, kwargs=kwargs)


def show(
    form: str,
    out: str | None,
    *,
    page: Callable[[TextIO], Page],
    concise: Callable[[], str],
    data: Callable[[], Any],
) -> None:
    """Render in the asked form; only the asked one is computed."""
    with opened(out) as stream:
        if form == "json":
            from ckptdoctor.reports.json import write

            write(data(), stream)
        elif form == "concise":
            stream.write(concise() + "\n")
        else:
            from ckptdoctor.reports.page import emit

            emit(page(stream), stream)


def show_diagnosis(
    diagnosis: Diagnosis, form: str, out: str | None, verbose: bool, kwargs: str, expand: bool = False
) -> None:
    """A diagnosis in the asked form, with ``expand`` the table of the whole alignment before it."""
    from ckptdoctor.diagnosis import concise
    from ckptdoctor.reports.text import diagnosis_page

    def page(stream: TextIO) -> Page:
        report = diagnosis_page(diagnosis, text_options(verbose, stream, kwargs))
        if expand:
            from ckptdoctor.reports.expand import expand_page

            report.lines[:0] = expand_page(diagnosis).lines
        return report

    show(form, out, page=page, concise=lambda: concise(diagnosis), data=diagnosis.to_dict)


def explain_refusal(diagnosis: Diagnosis, verbose: bool, kwargs: str) -> None:
    """The report of a diagnosis that cannot go on, on stderr."""
    from ckptdoctor.reports.page import emit
    from ckptdoctor.reports.text import diagnosis_page

    emit(diagnosis_page(diagnosis, text_options(verbose, sys.stderr, kwargs)), sys.stderr)
