"""docs/settings.md is what the settings' own descriptions say."""

from __future__ import annotations

from ragllava.settings import Settings
from tests.support.settings_page import PAGE, SECTIONS, settings_page


def test_the_page_is_generated_from_the_settings() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run `make docs`"


def test_every_setting_has_a_description_that_fits_a_table() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert "|" not in field.description and "\n" not in field.description, name


def test_sections_begin_at_fields_in_their_order() -> None:
    assert list(SECTIONS) == [name for name in Settings.model_fields if name in SECTIONS]
    assert next(iter(Settings.model_fields)) in SECTIONS
