"""The diagnosis as one HTML file: its tables and its figures."""

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from mmdscnet.atomic_write import atomic_path
from mmdscnet.visualization.diagnosis_tables import Table, as_html
from mmdscnet.visualization.report_page import Section, write_page


def write_diagnosis_page(
    path: str | os.PathLike[str],
    title: str,
    facts: Mapping[str, str],
    tables: Sequence[Table],
    figures: Mapping[str, str | os.PathLike[str]],
) -> None:
    """Write tables and figures as one HTML file that needs nothing else.

    Args:
        path: File to write; missing parent folders are made.
        title: Title of the page.
        facts: What was diagnosed, text by name.
        tables: The tables.
        figures: PNG files by heading; they become part of the page.

    Raises:
        FileNotFoundError: If a figure is missing.
    """
    missing = [str(figure) for figure in figures.values() if not Path(figure).is_file()]
    if missing:
        raise FileNotFoundError(f'the figures {missing} are not there: draw them before the page')
    sections = [
        Section(f'figure{number}', heading, [_embed(heading, Path(figure))])
        for number, (heading, figure) in enumerate(figures.items())
    ]
    sections += [
        Section(f'table{number}', table.heading, [as_html(table)])
        for number, table in enumerate(tables)
    ]
    rows = ''.join(
        f'<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>\n' for name, text in facts.items()
    )
    summary = f'<div class="wide"><table class="facts">\n<tbody>{rows}</tbody>\n</table></div>\n'
    with atomic_path(path) as temporary, temporary.open('wb') as file:
        # A file name need not be text: what of it cannot be encoded is spelled out.
        pieces = write_page(title, summary, sections)
        file.writelines(piece.encode(errors='backslashreplace') for piece in pieces)


def _embed(heading: str, figure: Path) -> str:
    content = base64.b64encode(figure.read_bytes()).decode()
    return (
        f'<img src="data:image/png;base64,{content}" alt="{escape(heading)}" '
        'style="max-width:100%;height:auto">\n'
    )
