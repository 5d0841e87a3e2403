"""A wrong setting stops the process with a line that names it."""

from __future__ import annotations

import secrets

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from tests.project.test_start_errors import WRONG
from tests.servers import ENVIRONMENT
from triggers_project.options import OPTIONS, read_options

GOOD = {**ENVIRONMENT, "DATABASE_URL": "postgres://a@b/c", "REDIS_URL": "redis://localhost"}


def test_the_defaults_are_good() -> None:
    values = read_options(GOOD)
    assert values["DELIVERY_RETRY_SCHEDULE"] == (0, 5, 300, 1800, 7200, 18000, 36000, 36000)
    assert values["DB_POOL_SIZE"] == 8
    assert values["DISABLE_WEBHOOK_DELIVERY"] is False
    assert values["USE_HTTPS"] is False


@pytest.mark.parametrize("text", ["/triggers", "triggers", "/triggers/", " triggers/ "])
def test_a_url_prefix_may_be_written_in_several_ways(text: str) -> None:
    assert read_options({**GOOD, "URL_PREFIX": text})["URL_PREFIX"] == "/triggers"


def test_every_option_is_a_setting() -> None:
    assert all(hasattr(settings, option.name) for option in OPTIONS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENVIRONMENT", "staging"),
        ("DATABASE_URL", "mysql://a@b/c"),
        ("REDIS_URL", "localhost:6379"),
        ("DEBUG", "perhaps"),
        ("DB_POOL_SIZE", "0"),
        ("DB_POOL_SIZE", "many"),
        ("DB_POOL_TIMEOUT", "30 seconds"),
        ("WEB_THREADS", "x"),
        ("MAX_EVENT_BYTES", "-1"),
        ("DEDUP_WINDOW", "1w"),
        ("DELIVERY_RETRY_SCHEDULE", ""),
        ("DELIVERY_RETRY_SCHEDULE", "0s,soon"),
        ("DELIVERY_RETRY_JITTER", "2"),
        ("DELIVERY_TIMEOUT", "0"),
        ("MAX_CONCURRENT_DELIVERIES", "1.5"),
        ("WEBHOOK_ALLOWED_SUBNETS", "10.0.0.1/8"),
        ("WEBHOOK_ALLOWED_SUBNETS", "intranet"),
        ("WEBHOOK_ALLOWED_PORTS", "443,https"),
        ("WEBHOOK_PROXY_URL", "socks5://x"),
        ("WEBHOOK_CA_FILE", "/does/not/exist.pem"),
        ("ADMIN_PATH", "a/b"),
        ("ADMIN_PATH", "api"),
        ("LOG_LEVEL", "verbose"),
        ("URL_PREFIX", "/a b"),
        ("URL_PREFIX", "/a//b"),
        ("URL_PREFIX", "/.."),
        ("URL_PREFIX", "https://example.com/triggers"),
        ("URL_PREFIX", "/api"),
        ("URL_PREFIX", "static/triggers"),
        ("URL_PREFIX", "/admin"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"^{name} "):
        read_options({**GOOD, name: value})


def test_every_wrong_value_is_named_at_once() -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        read_options({**GOOD, "DEBUG": "perhaps", "WEB_THREADS": "0"})
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["DEBUG", "WEB_THREADS"]


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL", "SECRET_KEY", "SECRETS_ENCRYPTION_KEYS"])
def test_what_has_no_safe_default_is_required(name: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"^{name} is not set"):
        read_options({key: value for key, value in GOOD.items() if key != name})


def test_a_secret_is_never_in_the_message() -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        read_options({**GOOD, "SECRETS_ENCRYPTION_KEYS": "hunter2", "SECRET_KEY": "hunter2"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30", 30), ("30s", 30), ("5m", 300), ("24h", 86400), ("2d", 172800)]
)
def test_durations_are_read_in_every_unit(text: str, seconds: float) -> None:
    assert (
        read_options(
            {**GOOD, "DEDUP_WINDOW": "1d", "RETRY_AFTER_MAX": "1h", "DISABLE_AFTER_FAILING_FOR": "5d"}
            | ({"DEDUP_WINDOW": text} if seconds >= 1 else {"SWEEP_INTERVAL": text})
        )["DEDUP_WINDOW" if seconds >= 1 else "SWEEP_INTERVAL"]
        == seconds
    )


def test_the_pool_follows_the_threads_unless_it_is_set() -> None:
    assert read_options({**GOOD, "WEB_THREADS": "20"})["DB_POOL_SIZE"] == 20
    assert read_options({**GOOD, "WEB_THREADS": "2"})["DB_POOL_SIZE"] == 4
    assert read_options({**GOOD, "WEB_THREADS": "20", "DB_POOL_SIZE": "5"})["DB_POOL_SIZE"] == 5


@pytest.mark.parametrize("name", sorted(WRONG))
def test_every_setting_has_a_value_that_it_refuses(name: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"^{name} is wrong: expected "):
        read_options({**GOOD, name: WRONG[name]})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("WEBHOOK_DNS_SERVERS", "10.0.0.2, 10.0.0.3:5353,[fd00::2]:53,fd00::3",
         ("10.0.0.2:53", "10.0.0.3:5353", "[fd00::2]:53", "[fd00::3]:53")),
        ("WEBHOOK_ALLOWED_PORTS", "443, 8443", frozenset({443, 8443})),
        ("ALLOWED_HOSTS", " a.example ,.b.example,", ["a.example", ".b.example"]),
        ("CSRF_TRUSTED_ORIGINS", "https://a.example,http://localhost:8000",
         ["https://a.example", "http://localhost:8000"]),
        ("ADMIN_PATH", "/back-office/", "back-office"),
        ("DELIVERY_RETRY_SCHEDULE", "0, 500ms,1m", (0, 0.5, 60)),
        ("DEBUG", "Yes", True),
        ("DISABLE_WEBHOOK_DELIVERY", "", False),
    ],
)  # fmt: skip
def test_lists_and_words_are_read_with_blanks_and_in_any_case(name: str, text: str, value: object) -> None:
    assert read_options({**GOOD, name: text})[name] == value


@pytest.mark.parametrize(
    "text", ["10.0.0.2:0", "10.0.0.2:99999", "dns.example", "[10.0.0.2", "fd00::2:53:x", "[fd00::zz]:53"]
)
def test_a_name_server_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="WEBHOOK_DNS_SERVERS"):
        read_options({**GOOD, "WEBHOOK_DNS_SERVERS": text})


def test_production_speaks_https_unless_it_is_told_not_to() -> None:
    production = {**GOOD, "ENVIRONMENT": "production", "SECRET_KEY": secrets.token_urlsafe(48)}
    assert read_options(production)["USE_HTTPS"] is True
    assert read_options({**production, "USE_HTTPS": "false"})["USE_HTTPS"] is False
