"""Rotating, adding, and removing the signing secrets of a subscription, with a page that asks first."""

from __future__ import annotations

import datetime
import uuid
from functools import partial
from typing import Any

from django import forms
from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.safestring import SafeString

from console.confirmation import OptionalReasonForm, Question, answer, question_page, reason_of
from console.credential_forms import SECRET_TYPES
from console.model_admin import BoundedAdmin, new_secret_page
from webhooks import subscriptions
from webhooks.destinations.http.signing import public_key, secret_key
from webhooks.display.formatting import format_time, short, table
from webhooks.models import Subscription
from webhooks.signing_secrets import (
    MAX_PREVIOUS_SECRETS,
    LastSecret,
    SecretExists,
    StoredSecret,
    TooManySecrets,
    add,
    remove,
    stored_secrets,
)


class RotationForm(OptionalReasonForm):
    """The confirmation of a new signing secret.  overlap: how long, in seconds, the old one signs, too."""

    overlap = forms.ChoiceField(
        label="The old secret signs for",
        choices=[("86400", "1 more day"), ("3600", "1 more hour"), ("604800", "7 more days"), ("0", "no longer")],
    )
    field_order = ("overlap", "reason", "seen_at")


class AddSecretForm(OptionalReasonForm):
    """The confirmation of another secret.  ends: after how many seconds it stops signing; 0 is never."""

    secret_type = forms.ChoiceField(label="Type of a new secret", choices=SECRET_TYPES)
    own_secret = forms.CharField(
        label="Your own secret instead",
        required=False,
        widget=forms.PasswordInput(attrs={"size": 60, "autocomplete": "new-password"}),
        help_text="whsec_… (base64 of 24 to 64 bytes) or whsk_… (ed25519).",
    )
    ends = forms.ChoiceField(
        label="It signs",
        choices=[
            ("0", "until it is removed"),
            ("86400", "for 1 day"),
            ("604800", "for 7 days"),
            ("2592000", "for 30 days"),
        ],
    )
    field_order = ("secret_type", "own_secret", "ends", "reason", "seen_at")

    def clean_own_secret(self) -> str:
        """Return the secret, if it is one."""
        text: str = self.cleaned_data["own_secret"]
        if text:
            try:
                secret_key(text)
            except ValueError as error:
                raise forms.ValidationError(str(error)) from None
        return text


def _short_id(secret: StoredSecret) -> str:
    """Return the part of the id that differs."""
    return f"…{str(secret.id)[-6:]}"


def secrets_table(stored: list[StoredSecret]) -> SafeString:
    """Return a table of what may be shown of the secrets."""
    return table(
        ("id", "type", "public key", "since", "until"),
        [
            (
                _short_id(secret),
                str(secret.type),
                short(secret.public_key or "-"),
                format_time(secret.created_at),
                format_time(secret.expires_at) if secret.expires_at else "it is removed",
            )
            for secret in stored
        ],
    )


def show_new(
    model_admin: BoundedAdmin, request: HttpRequest, row: Subscription, what: str, secret: str, *, own: bool
) -> HttpResponse | None:
    """Show a generated secret once, in a message; of an ed25519 secret, its public key."""
    if secret.startswith("whsk_"):
        said = f"The {what} signs with ed25519. Its public key is {public_key(secret)}."
        model_admin.message_user(request, said, messages.SUCCESS)
        return None
    if own:
        model_admin.message_user(request, f"The {what} signs from the next attempt on.", messages.SUCCESS)
        return None
    return new_secret_page(model_admin, request, row, what, secret)


def ask_and_rotate(model_admin: BoundedAdmin, request: HttpRequest, row: Subscription) -> HttpResponse | None:
    """Ask how long the old secret signs, replace it, and show the new one."""
    form = answer(request, RotationForm)
    if not form.is_valid():
        texts = [
            f"The endpoint {short(row.url, 200)} gets a new signing secret, which is shown once. For as long as "
            "you choose, webhooks are signed with both, so that the receiver can change over."
        ]
        return question_page(
            model_admin, request, form, Question("Rotate the signing secret?", "Rotate the secret", texts)
        )
    overlap = int(form.cleaned_data["overlap"])
    try:
        with transaction.atomic():
            secret = subscriptions.rotate_secret(row, datetime.timedelta(seconds=overlap))
            model_admin.audit(request, "subscription.rotate_secret", row, {"overlap_seconds": overlap}, reason_of(form))
    except TooManySecrets as error:
        model_admin.message_user(
            request,
            f"{MAX_PREVIOUS_SECRETS} other secrets sign"
            + (f", the first of them until {format_time(error.ends_at)}" if error.ends_at else "")
            + ". Nothing was changed.",
            messages.ERROR,
        )
        return None
    return show_new(model_admin, request, row, "signing secret", secret, own=False)


def ask_and_add(model_admin: BoundedAdmin, request: HttpRequest, row: Subscription) -> HttpResponse | None:
    """Ask what secret to add, and add it."""
    form = answer(request, AddSecretForm)
    if not form.is_valid():
        text = (
            f"Webhooks to {short(row.url, 200)} are signed with all of the secrets, and a receiver needs one of them. "
            "A new shared secret is shown once; of an ed25519 one, receivers need the public key alone."
        )
        shown = [("Secrets that sign", secrets_table(stored_secrets(row)))]
        return question_page(
            model_admin, request, form, Question("Add a signing secret?", "Add the secret", [text], shown)
        )
    own, seconds = form.cleaned_data["own_secret"], int(form.cleaned_data["ends"])
    ends = timezone.now() + datetime.timedelta(seconds=seconds) if seconds else None
    audit = partial(_audit, model_admin, request, "subscription.add_secret", row, reason_of(form))
    try:
        _, secret = add(row, own or None, secret_type=form.cleaned_data["secret_type"], expires_at=ends, audit=audit)
    except TooManySecrets:
        said = f"{MAX_PREVIOUS_SECRETS} secrets sign besides the current one. Remove one first. Nothing was changed."
    except SecretExists:
        said = "The subscription has this secret already. Nothing was changed."
    except Subscription.DoesNotExist:
        said = "The subscription was deleted meanwhile."
    else:
        return show_new(model_admin, request, row, "signing secret", secret, own=bool(own))
    model_admin.message_user(request, said, messages.ERROR)
    return None


def ask_and_remove(model_admin: BoundedAdmin, request: HttpRequest, row: Subscription) -> HttpResponse | None:
    """Ask which secret to remove, and remove it."""
    stored = stored_secrets(row)

    class RemoveSecretForm(OptionalReasonForm):
        secret = forms.ChoiceField(
            label="Secret",
            choices=[
                (str(one.id), f"{_short_id(one)}: {one.public_key or one.type}, since {format_time(one.created_at)}")
                for one in stored
            ],
        )
        field_order = ("secret", "reason", "seen_at")

    form = answer(request, RemoveSecretForm)
    if not form.is_valid():
        text = "It stops signing at once: receivers that know no other secret refuse what they get."
        shown = [("Secrets that sign", secrets_table(stored))]
        question = Question("Remove a signing secret?", "Remove the secret", [text], shown)
        return question_page(model_admin, request, form, question)
    audit = partial(_audit, model_admin, request, "subscription.remove_secret", row, reason_of(form))
    try:
        with transaction.atomic():
            removed = remove(row, uuid.UUID(form.cleaned_data["secret"]), audit=audit)
    except LastSecret:
        said = "It is the only secret that doesn't end. Add another one first. Nothing was changed."
        model_admin.message_user(request, said, messages.ERROR)
        return None
    except Subscription.DoesNotExist:
        model_admin.message_user(request, "The subscription was deleted meanwhile.", messages.ERROR)
        return None
    if removed:
        model_admin.message_user(request, "The secret was removed.", messages.SUCCESS)
    return None


def _audit(
    model_admin: BoundedAdmin, request: HttpRequest, action: str, row: Any, reason: str, secret: StoredSecret
) -> None:
    model_admin.audit(request, action, row, secret.for_audit(), reason)
