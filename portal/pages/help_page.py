"""Help for people who have never seen our API, with signature samples in the language that they pick."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from portal import texts
from portal.web import PortalView

# The files in `samples`, whose code the tests run.
LANGUAGES = {
    "python": ("Python", "verify.py"), "node": ("Node.js", "verify.js"), "go": ("Go", "verify.go"),
    "php": ("PHP", "verify.php"), "ruby": ("Ruby", "verify.rb"), "java": ("Java", "Webhooks.java"),
}  # fmt: skip
SAMPLES = Path(__file__).parent.parent / "samples"


def sample(language: str) -> str:
    """Return the code for a language."""
    return (SAMPLES / LANGUAGES[language][1]).read_text(encoding="utf-8")


class HelpView(PortalView):
    """What states mean, what to do about failures, and how to verify a signature."""

    section = "help"

    def get(self, request: HttpRequest) -> HttpResponse:
        language = request.GET.get("language", "")
        language = language if language in LANGUAGES else "python"
        return self.page(
            "help.html",
            states=texts.STATES,
            delivery_states={
                name: f"{meaning} {texts.MORE_OF_STATES.get(name, '')}".strip()
                for name, meaning in texts.DELIVERY_STATES.items()
            },
            inbox_states=texts.INBOX_STATES,
            languages=[(name, label) for name, (label, _) in LANGUAGES.items()],
            language=language,
            language_label=LANGUAGES[language][0],
            sample=sample(language),
            schedule=_schedule(),
            timeout=f"{settings.DELIVERY_TIMEOUT:g}",
        )


def _schedule() -> list[str]:
    """Return the delays of the retry schedule, in words."""
    shown = []
    for seconds in settings.DELIVERY_RETRY_SCHEDULE:
        for unit, size in (("hours", 3600), ("minutes", 60), ("seconds", 1)):
            if seconds >= size:
                number = f"{seconds / size:g}"
                shown.append(f"{number} {unit[:-1] if number == '1' else unit}")
                break
        else:
            shown.append("at once")
    return shown
