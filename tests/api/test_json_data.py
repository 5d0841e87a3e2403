"""`data` that orjson refuses although it is JSON: kept, shown, compared and sent as it was written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from core import json_text
from devstack.http_receiver import Receiver
from events.models import Event
from tests.api.helpers import assert_problem
from tests.security.egress import deliver
from webhooks.models import Delivery, DeliveryAttempt, Subscription
from webhooks.upkeep import recovery, replay

ODD = {
    "beyond all floats": "1e400",
    "below all floats": "-1E+400",
    "a long exponent": "1e99999999999999999999",
    "an integer of 4,000 digits": "9" * 4000,
    "a fraction of 4,000 digits": "0." + "9" * 4000,
    "half a surrogate pair": '"\\ud800"',
    "the other half": '"\\uDC00 and more"',
    "halves the wrong way round": '"\\udc00\\ud800"',
    "half a pair in a member's name": '{"\\ud800":{"\\udfff":1}}',
    "U+0000": '"\\u0000"',
    "U+0000 in a member's name": '{"a\\u0000":["\\u0000"]}',
    "everything with white space": '{ "a" : [ 1e400 ,\t"\\ud800\\u0000\\\\" ] , "a":-0 , "}":"],\\"" }',
    "members twice": '{"a":"\\ud800","a":1e400}',
    "an empty object beside it": '[{},[],1e400,"é😀\\u00e9"]',
}  # fmt: skip


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("form", ['{"type":"a","data":%s}', '{ "payload" : %s , "type" : "a" }'])
def test_data_is_kept_and_shown_byte_for_byte(api: Any, text: str, form: str) -> None:
    answer = api.post("/api/events", raw=(form % text).encode())
    assert answer.status_code == 202, answer.content
    assert Event.objects.get().data == text
    shown = api.get(answer["Location"]).content
    assert f'"data":{text},'.encode() in shown
    json.loads(shown, parse_int=str, parse_float=str, parse_constant=pytest.fail)
    assert f'"data":{text}'.encode() in api.get("/api/events").content


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_a_batch_keeps_it_byte_for_byte_and_judges_its_neighbors_alone(api: Any, text: str) -> None:
    items = [
        '{"type":"a","data":1}',
        f'{{"type":"b", "data": {text} }}',
        '{"type":5,"data":2}',
        '{"type":"c","data":[ ]}',
    ]
    for body, media_type in ((f" [ {' , '.join(items)} ] ", "application/json"),
                             ("\n".join(items), "application/x-ndjson")):  # fmt: skip
        Event.objects.all().delete()
        answer = api.post("/api/events/batch", raw=body.encode(), content_type=media_type)
        assert [item["status"] for item in answer.json()["data"]] == ["accepted", "accepted", "invalid", "accepted"]
        assert answer.json()["data"][2]["errors"][0]["pointer"] == "/type"
        assert list(Event.objects.order_by("id").values_list("data", flat=True)) == ["1", text, "[ ]"]


def test_of_an_event_with_members_twice_the_last_counts_as_everywhere(api: Any) -> None:
    answer = api.post("/api/events", raw=b'{"type":"a","data":1e400,"type":"b","data":"\\ud800"}')
    shown = api.get(answer["Location"]).json()
    assert (shown["type"], shown["data"]) == ("b", "\ud800")


def test_a_body_that_is_only_almost_json_is_refused_with_what_is_wrong_and_not_with_what_is_not(api: Any) -> None:
    problem = assert_problem(api.post("/api/events", raw=b'{"type":"a","data":[1e400,NaN]}'), 400)
    assert problem["code"] == "invalid_json"
    assert "NaN" in problem["detail"]
    assert "infinity" not in problem["detail"]


@pytest.mark.parametrize("path", ["/api/subscriptions", "/api/keys"])
@pytest.mark.parametrize("text", ['{"description":"\\ud800"}', '{"name":"\\u0000"}', '{"max_in_flight":1e400}'])
def test_what_isnt_an_event_stays_strict(api: Any, path: str, text: str) -> None:
    assert_problem(api.post(path, raw=text.encode()), 400)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_it_is_delivered_signed_replayed_and_recovered_byte_for_byte(api: Any, receiver: Receiver, text: str) -> None:
    made = api.post("/api/subscriptions", {"url": receiver.url(), "event_types": ["*"]}).json()
    api.post("/api/events", raw=f'{{"type":"a","data":{text}}}'.encode())
    deliver()
    run = replay.start({"status": "delivered"})
    assert replay.advance(run.id) is not None
    deliver()
    DeliveryAttempt.objects.all().delete()
    Delivery.objects.all().delete()
    again = recovery.start(Subscription.objects.get(pk=made["id"]), Event.objects.get().created_at)
    assert recovery.advance(again.id) is not None
    deliver()
    assert len(receiver.requests) == 3
    for request in receiver.requests:
        assert request.body.endswith(f',"data":{text}}}'.encode())
        Webhook(made["secret"]).verify(request.body, request.headers)


def test_the_admin_shows_it(api: Any) -> None:
    User.objects.create_superuser("root")
    client = Client()
    client.force_login(User.objects.get(), backend="django.contrib.auth.backends.ModelBackend")
    for text in ODD.values():
        answer = api.post("/api/events", raw=f'{{"type":"a","data":{text}}}'.encode())
        page = client.get(f"/admin/events/event/{answer.json()['id']}/change/")
        assert page.status_code == 200
        assert b'class="hostile"' in page.content
        for part in ("1e400", "ud800", "u0000"):
            assert (part in text) == (part in page.content.decode()), part


# --- the parser -------------------------------------------------------------------------------------

_STRINGS = st.text(st.characters(max_codepoint=0x2FFFF, exclude_categories=()), max_size=6)
_TEXTS = st.recursive(
    st.sampled_from(["null", "true", "-0", "1e400", "-1.5E+999", "9" * 400, "[ ]", "{\t}"])
    | st.integers().map(str)
    | _STRINGS.map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda parts: "[" + " , ".join(parts) + "]")
        | st.lists(st.tuples(_STRINGS.map(json.dumps), inner), max_size=4).map(
            lambda parts: "{ " + ",".join(f"{name}\n:\r{value}" for name, value in parts) + " }"
        )
    ),
    max_leaves=12,
)


@given(st.lists(st.tuples(_STRINGS, _TEXTS), max_size=5))
def test_the_text_of_each_member_and_item_is_found_exactly(parts: list[tuple[str, str]]) -> None:
    body = "\t{ " + " , ".join(f"{json.dumps(name)} : {text} " for name, text in parts) + " }\n"
    assert json_text.members(body.encode()) == dict(parts)
    assert list(json_text.parse(body.encode())) == list(dict(parts))
    texts = [text for _, text in parts]
    assert json_text.items(f" [ {' , '.join(texts)} ] ".encode()) == [text.encode() for text in texts]


@pytest.mark.parametrize(
    "text",
    ["", " ", "NaN", "-Infinity", "[1,]", "{'a':1}", '{"a":1,}', "01", "+1", "1.", ".5", "1e", "-", '"\t"', '"\\x"',
     '"\\u12"', "[1 2]", '{"a" 1}', "1 2", "\ufeff1", "nul", "[", '{"a":', "\x00", "\xa01", "\u0661"],
)  # fmt: skip
def test_what_isnt_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        json_text.parse(text.encode())


@pytest.mark.parametrize("body", [b"\xff", b'"\xed\xa0\x80"', b'"\xc0\xaf"', '"a"'.encode("utf-16")])
def test_what_isnt_utf_8_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        json_text.parse(body)
