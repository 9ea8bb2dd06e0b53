"""The images of the documentation show what the commands print."""

from __future__ import annotations

from .screenshots import IMAGES, images, words_of


def test_the_images_are_up_to_date():
    """If not: ``python -m tests.acceptance.screenshots``."""
    made = {name: words_of(svg) for name, svg in images().items()}
    files = {file.stem: words_of(file.read_text("utf-8")) for file in IMAGES.glob("*.svg")}
    assert files == made
