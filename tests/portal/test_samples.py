"""The samples of the help page.  What they do is tested where the guides' receivers run: `test_guides.py`."""

from __future__ import annotations

from portal.pages.help_page import LANGUAGES, SAMPLES


def test_there_is_a_sample_for_each_language() -> None:
    assert {path.name for path in SAMPLES.iterdir() if path.suffix != ".pyc" and path.is_file()} == {
        name for _, name in LANGUAGES.values()
    }
