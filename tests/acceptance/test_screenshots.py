"""The images of the documentation show what the commands print."""

from __future__ import annotations

from .screenshots import IMAGES, images, words_of


def test_the_images_are_up_to_date():
    """If not: ``python -m tests.acceptance.screenshots``."""
    made = {name: words_of(svg) for name, svg in images().items()}
    files = {name: words_of((IMAGES / f"{name}.svg").read_text("utf-8")) for name in made}
    assert files == made
