"""What the pages share: they are drawn from one set of templates and load nothing from anywhere."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING, Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # which a page without figures need not load

_INTERVAL = re.compile(r"\[([^\[\]]+), ([^\[\]]+)\]")


def environment(*loaders: BaseLoader) -> Environment:
    """Jinja over the templates beside this file, such as ``base.html`` and ``page.css``, and those of ``loaders``."""
    templates = Environment(
        loader=ChoiceLoader([*loaders, PackageLoader(__package__, "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["unbroken"] = unbroken_intervals
    return templates


def unbroken_intervals(text: str) -> str:
    """``12.5 [10.0, 14.9]`` so that a narrow cell breaks it before the bracket, not within; nor around a slash."""
    unbroken = _INTERVAL.sub("[\\1,\N{NO-BREAK SPACE}\\2]", text)
    return unbroken.replace(" / ", "\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}").replace(" /\n", "\N{NO-BREAK SPACE}/\n")


_ENVIRONMENT = environment()


def render(template: str, **content: Any) -> str:
    """A template beside this file, filled in."""
    return _ENVIRONMENT.get_template(template).render(content)


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    content = io.BytesIO()
    picture.save(content, format="png", optimize=True)
    return content.getvalue()


def figure_png(figure: Figure, dpi: int = 120) -> bytes:
    """A figure as the bytes of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()


def data_url(content: bytes) -> str:
    """A PNG file's bytes as an address that holds them."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
