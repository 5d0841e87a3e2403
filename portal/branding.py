"""The portal's own look: its name, its logo, and its color, which is made readable on light and on dark pages."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings

Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
# The darkest and the lightest surface that text in the color stands on, as in portal.css.
LIGHT_SURFACE: Color = (244, 246, 249)
DARK_SURFACE: Color = (35, 41, 50)
BLACK: Color = (17, 20, 24)
# WCAG 2.2, 1.4.3 for text, and 1.4.11 for the edges of buttons.
READABLE, VISIBLE = 4.5, 3.0


def parse(text: str) -> Color:
    """Return the parts of a color such as `#1f5fbf`."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _text(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def luminance(color: Color) -> float:
    """Return the relative luminance (WCAG 2.2)."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (one / 255 for one in color)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Color, other: Color) -> float:
    """Return the contrast ratio of two colors, from 1 to 21 (WCAG 2.2)."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def readable(color: Color, surface: Color, toward: Color, least: float = READABLE) -> Color:
    """Return the color, moved toward another one until text in it is readable on the surface.  least: the contrast."""
    for step in range(21):
        red, green, blue = (round(a + (b - a) * step / 20) for a, b in zip(color, toward, strict=True))
        if contrast((red, green, blue), surface) >= least:
            return red, green, blue
    return toward


def theme() -> str:
    """Return the style sheet with the portal's color."""
    brand = parse(settings.PORTAL_COLOR)
    on_brand = WHITE if contrast(brand, WHITE) >= READABLE else BLACK
    light, dark = readable(brand, LIGHT_SURFACE, BLACK), readable(brand, DARK_SURFACE, WHITE)
    # Without an edge, a button in the color of the page would look like text.
    light_edge = readable(brand, LIGHT_SURFACE, BLACK, VISIBLE)
    dark_edge = readable(brand, DARK_SURFACE, WHITE, VISIBLE)
    return (
        f":root {{ --brand: {_text(brand)}; --on-brand: {_text(on_brand)}; --accent: {_text(light)};"
        f" --brand-edge: {_text(light_edge)}; }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ --accent: {_text(dark)};"
        f" --brand-edge: {_text(dark_edge)}; }} }}\n"
    )


def logo_origin() -> str:
    """Return the origin of the logo, for the content security policy; empty without one."""
    parts = urlsplit(settings.PORTAL_LOGO_URL)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""
