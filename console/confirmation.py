"""Pages that stand between an action and what it does: what would happen, in numbers, and a form to confirm it.

The page's form posts the action again, to the same list, with what was typed.  So an action first builds its question;
`answer` tells whether that was confirmed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from django import forms
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.safestring import SafeString

from console.model_admin import BoundedAdmin

F = TypeVar("F", bound="ConfirmationForm")

CONFIRMED = "confirmed"


class ConfirmationForm(forms.Form):
    """What every confirmation form has: when the user saw what would happen."""

    seen_at = forms.DateTimeField(widget=forms.HiddenInput)


def _reason(*, required: bool, why: str) -> forms.CharField:
    return forms.CharField(
        label="Reason" if required else "Reason (optional)",
        max_length=300,
        required=required,
        help_text=why,
        widget=forms.TextInput(attrs={"size": 60, "autofocus": required}),
    )


class ReasonForm(ConfirmationForm):
    """A confirmation that requires a reason."""

    reason = _reason(required=True, why="Shown in the audit log, for those who ask later.")


class OptionalReasonForm(ConfirmationForm):
    """A confirmation with an optional reason."""

    reason = _reason(required=False, why="Shown in the audit log.")


@dataclass
class Question:
    """What a confirmation page says.  button: what the user agrees to.  tables: each with its heading."""

    title: str
    button: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[tuple[str, SafeString]] = field(default_factory=list)
    # The page then has no button.
    nothing_to_do: bool = False


def answer(request: HttpRequest, form_class: type[F]) -> F:
    """Return the form as it was sent, or empty if the user hasn't been asked yet: `form.is_valid()` tells."""
    if request.POST.get(CONFIRMED):
        return form_class(request.POST, auto_id="confirm_%s")
    return form_class(auto_id="confirm_%s", initial={"seen_at": timezone.now().isoformat()})


def reason_of(form: forms.Form) -> str:
    """Return the reason that was typed, on one line."""
    return " ".join(form.cleaned_data.get("reason", "").split())


def question_page(
    model_admin: BoundedAdmin, request: HttpRequest, form: forms.Form, question: Question
) -> TemplateResponse:
    """Return the confirmation page."""
    repeated: list[tuple[str, str]] = [
        (name, value)
        for name in ("action", ACTION_CHECKBOX_NAME, "select_across", "index", "back")
        for value in _values(request, name)
    ]
    context: dict[str, Any] = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "title": question.title,
        "question": question,
        "form": form,
        "repeated": repeated,
        "is_dangerous": request.POST.get("action") in model_admin.dangerous_actions,
        "back_url": request.get_full_path(),
    }
    return TemplateResponse(request, "console/confirm.html", context)


def _values(request: HttpRequest, name: str) -> Sequence[str]:
    """Return the values of a field of the action's form.  Django reads the action at the place that `index` names."""
    values = request.POST.getlist(name)
    if name == "action":
        chosen = [value for value in values if value]
        return chosen[:1]
    return values
