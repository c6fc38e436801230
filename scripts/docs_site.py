"""Hooks of the documentation's site (``mkdocs build --strict``): pages from beside docs/, links, the API's pages.

README and its like lie where a repository has them, and every page links as files do; the site has the same text at
other addresses. Links to files that are no pages become plain text. Each room of the package gets a page of its
docstrings.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "bundle/docs/README.md": "bundle.md",
}
"""Path in the repository -> in the site, of pages that lie beside docs/."""
PACKAGE = ROOT / "nodule_plugin"
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):\s*<code>~?")


def on_config(config: Any) -> Any:
    """Add the API's pages to the navigation."""
    config.nav.append({"API": [{room: f"api/{room}.md"} for room in rooms()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for source, page in BESIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for room, modules in rooms().items():
        text = "\n\n".join([f"# {room}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, f"api/{room}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead where the site has what they mean."""
    site = page.file.src_uri
    source = next((path for path, name in BESIDE.items() if name == site), f"docs/{site}")
    return LINK.sub(lambda link: site_link(link, source, site), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show Sphinx's roles, by which docstrings name things, as the names alone."""
    return ROLE.sub("<code>", html)


def site_link(link: re.Match[str], source: str, site: str) -> str:
    """One link of the page that is ``source`` in the repository and ``site`` in the site."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
    if target in BESIDE or target.startswith("docs/"):
        path = posixpath.relpath(BESIDE.get(target, target.removeprefix("docs/")), posixpath.dirname(site) or ".")
        return f"{link['image']}[{link['text']}]({path}{link['anchor'] or ''})"
    return link["text"] if (ROOT / target).exists() else link[0]  # mkdocs names what is nowhere


def rooms() -> dict[str, list[str]]:
    """Room of the package -> its modules, by their full names."""
    found: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("_") for part in parts) and "label_app" not in parts:
            found.setdefault(parts[1], []).append(".".join(parts))
    return found
