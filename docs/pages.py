"""Pages of the site that stand elsewhere in the repository, and links that lead out of the site.

A hook of mkdocs: README.md is the site's first page, and every link is turned into one that the
site has. Where a link leads to a file that is no page, its text stays, with the file's name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"index.md": "README.md", "leaderboards.md": "leaderboards/README.md"}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?!https?://|#|mailto:)[^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not stand in `docs`."""
    for page, source in ELSEWHERE.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead its links to where the pages stand in the site."""
    return relinked(markdown, page.file.src_uri, {file.src_uri for file in files})


def relinked(markdown: str, page: str, pages: set[str]) -> str:
    """The text of a page of the site, with links that hold between the site's `pages`."""
    source = ELSEWHERE.get(page, f"docs/{page}")
    folder, here = posixpath.dirname(source), posixpath.dirname(page)
    named = {file: name for name, file in ELSEWHERE.items()}

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        file = posixpath.normpath(posixpath.join(folder, target))
        name = named.get(file, file.removeprefix("docs/"))
        if name not in pages:
            return f"{text} (`{file}`)"
        return f"[{text}]({posixpath.relpath(name, here or '.')}{anchor})"

    return _LINK.sub(link, markdown)
