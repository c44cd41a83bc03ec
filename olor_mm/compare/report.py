"""Reports in markdown, and as one HTML file with its figures. Needs pandas, matplotlib and markdown-it-py."""

import base64
import io
import re
from html import escape
from pathlib import Path

import pandas as pd
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

PAGE = Path(__file__).with_name('report.html')


def literal(text: object) -> str:
    """Text with the special characters of markdown escaped."""
    return re.sub(r'[\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_])', r'\\\g<0>', str(text))


class Report:
    """A titled page of paragraphs, tables and figures in their order."""

    def __init__(self, title: str):
        self.title = title
        self.blocks = [f'# {literal(title)}']
        self.figures: dict[str, bytes] = {}

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading."""
        self.blocks.append(f'{"#" * level} {literal(text)}')

    def text(self, *paragraphs: str) -> None:
        """Add paragraphs of plain text."""
        self.blocks += map(literal, paragraphs)

    def notes(self, notes: list[str]) -> None:
        """Add a list of points in plain text."""
        if notes:
            self.blocks.append('\n'.join(f'- {literal(note)}' for note in notes))

    def table(self, table: pd.DataFrame, text_columns: tuple[str, ...] = ()) -> None:
        """Add a table of formatted values, its index first. The index and the text columns are aligned left."""
        cells = [[literal(cell) for cell in row] for row in table.itertuples(name=None)]
        names = [literal(name) for name in (table.index.name or '', *table.columns)]
        rules = ['---', *('---' if name in text_columns else '---:' for name in table.columns)]
        self.blocks.append('\n'.join(f'| {" | ".join(line)} |' for line in (names, rules, *cells)))

    def figure(self, name: str, figure: Figure, alt: str) -> None:
        """Add a figure, and what it shows in words."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format='png', dpi=130)
        self.figures[f'{name}.png'] = buffer.getvalue()
        self.blocks.append(f'![{literal(alt)}](figures/{name}.png)')

    def html(self) -> str:
        """The report as a page that needs no other file."""
        parser = MarkdownIt('commonmark', dict(html=False)).enable('table')
        tokens = parser.parse(self.markdown())
        for image in (child for token in tokens for child in token.children or () if child.type == 'image'):
            content = self.figures[Path(image.attrs['src']).name]
            image.attrs['src'] = f'data:image/png;base64,{base64.b64encode(content).decode()}'
        body = parser.renderer.render(tokens, parser.options, {})
        return PAGE.read_text().format(title=escape(self.title), body=body)

    def markdown(self) -> str:
        """The report as markdown, with figures in ``figures/``."""
        return '\n\n'.join(self.blocks) + '\n'

    def write(self, folder: Path) -> None:
        """Write ``report.html``, ``report.md`` and ``figures/``."""
        (folder / 'figures').mkdir(parents=True, exist_ok=True)
        for name, content in self.figures.items():
            (folder / 'figures' / name).write_bytes(content)
        (folder / 'report.md').write_text(self.markdown(), encoding='utf-8')
        (folder / 'report.html').write_text(self.html(), encoding='utf-8')
