"""The one settings module. What an operator can choose is listed in `options.py`."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import environ
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.logs import configure_logging
from core.postgresql.base import WatchedConnection
from triggers_project.options import read_options

BASE_DIR = Path(__file__).resolve().parent.parent

# `make run` leaves what it started here, so that manage.py in the same folder finds it.
environ.Env.read_env(BASE_DIR / ".local" / "env")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Checked here, all at once; what each means is said in options.py.
_options = read_options(os.environ)
ENVIRONMENT: str = _options["ENVIRONMENT"]
DATABASE_URL: str = _options["DATABASE_URL"]
REDIS_URL: str = _options["REDIS_URL"]
REDIS_SENTINELS: tuple[tuple[str, int], ...] = _options["REDIS_SENTINELS"]
REDIS_SENTINEL_PASSWORD: str = _options["REDIS_SENTINEL_PASSWORD"]
SECRET_KEY: str = _options["SECRET_KEY"]
SECRETS_ENCRYPTION_KEYS: list[str] = _options["SECRETS_ENCRYPTION_KEYS"]
DEBUG: bool = _options["DEBUG"]
# 127.0.0.1 is how a container asks itself whether it is healthy.
ALLOWED_HOSTS: list[str] = [*_options["ALLOWED_HOSTS"], "127.0.0.1"]
CSRF_TRUSTED_ORIGINS: list[str] = _options["CSRF_TRUSTED_ORIGINS"]
USE_HTTPS: bool = _options["USE_HTTPS"]
TRUSTED_PROXIES: int = _options["TRUSTED_PROXIES"]
URL_PREFIX: str = _options["URL_PREFIX"]
ADMIN_PATH: str = _options["ADMIN_PATH"]
LOG_LEVEL: str = _options["LOG_LEVEL"]
DB_POOL_SIZE: int = _options["DB_POOL_SIZE"]
DB_POOL_MAX_OVERFLOW: int = _options["DB_POOL_MAX_OVERFLOW"]
DB_POOL_TIMEOUT: float = _options["DB_POOL_TIMEOUT"]
DB_POOL_MAX_LIFETIME: float = _options["DB_POOL_MAX_LIFETIME"]
DB_PREPARED_STATEMENTS: bool = _options["DB_PREPARED_STATEMENTS"]
WEB_THREADS: int = _options["WEB_THREADS"]
MAX_EVENT_BYTES: int = _options["MAX_EVENT_BYTES"]
MAX_BATCH_BYTES: int = _options["MAX_BATCH_BYTES"]
MAX_BATCH_EVENTS: int = _options["MAX_BATCH_EVENTS"]
MAX_JSON_DEPTH: int = _options["MAX_JSON_DEPTH"]
DEDUP_WINDOW: float = _options["DEDUP_WINDOW"]
MAX_QUEUE_LENGTH: int = _options["MAX_QUEUE_LENGTH"]
MAX_WAITING_EVENTS: int = _options["MAX_WAITING_EVENTS"]
MAX_WAITING_DELIVERIES: int = _options["MAX_WAITING_DELIVERIES"]
DEFAULT_EVENTS_PER_MINUTE: int = _options["DEFAULT_EVENTS_PER_MINUTE"]
DEFAULT_RETENTION_DAYS: int = _options["DEFAULT_RETENTION_DAYS"]
PARTITION_DAYS: int = _options["PARTITION_DAYS"]
AUTH_FAILURES_PER_MINUTE: int = _options["AUTH_FAILURES_PER_MINUTE"]
MAX_API_KEYS: int = _options["MAX_API_KEYS"]
MAX_SUBSCRIPTIONS: int = _options["MAX_SUBSCRIPTIONS"]
MAX_CONCURRENT_EVENTS: int = _options["MAX_CONCURRENT_EVENTS"]
MAX_CONCURRENT_DELIVERIES: int = _options["MAX_CONCURRENT_DELIVERIES"]
MAX_CONNECTIONS_PER_HOST: int = _options["MAX_CONNECTIONS_PER_HOST"]
MAX_IN_FLIGHT_PER_SUBSCRIPTION: int = _options["MAX_IN_FLIGHT_PER_SUBSCRIPTION"]
INITIAL_CONCURRENCY_WINDOW: int = _options["INITIAL_CONCURRENCY_WINDOW"]
EVENT_MAX_ATTEMPTS: int = _options["EVENT_MAX_ATTEMPTS"]
SWEEP_INTERVAL: float = _options["SWEEP_INTERVAL"]
WORKER_SHUTDOWN_GRACE: float = _options["WORKER_SHUTDOWN_GRACE"]
WORKER_HEARTBEAT_FILE: str = _options["WORKER_HEARTBEAT_FILE"]
DISABLE_WEBHOOK_DELIVERY: bool = _options["DISABLE_WEBHOOK_DELIVERY"]
DELIVERY_RETRY_SCHEDULE: tuple[float, ...] = _options["DELIVERY_RETRY_SCHEDULE"]
DELIVERY_RETRY_JITTER: float = _options["DELIVERY_RETRY_JITTER"]
DELIVERY_TIMEOUT: float = _options["DELIVERY_TIMEOUT"]
LEASE_MARGIN: float = _options["LEASE_MARGIN"]
RETRY_AFTER_MAX: float = _options["RETRY_AFTER_MAX"]
RESPONSE_BODY_BYTES: int = _options["RESPONSE_BODY_BYTES"]
DISABLE_AFTER_FAILING_FOR: float = _options["DISABLE_AFTER_FAILING_FOR"]
BREAKER_THRESHOLD: int = _options["BREAKER_THRESHOLD"]
BREAKER_BASE_DELAY: float = _options["BREAKER_BASE_DELAY"]
BREAKER_MAX_DELAY: float = _options["BREAKER_MAX_DELAY"]
DNS_CACHE_TTL: float = _options["DNS_CACHE_TTL"]
WEBHOOK_DNS_SERVERS: tuple[str, ...] = _options["WEBHOOK_DNS_SERVERS"]
WEBHOOK_ALLOWED_SUBNETS: tuple[Network, ...] = _options["WEBHOOK_ALLOWED_SUBNETS"]
WEBHOOK_ALLOWED_PORTS: frozenset[int] = _options["WEBHOOK_ALLOWED_PORTS"]
WEBHOOK_PROXY_URL: str = _options["WEBHOOK_PROXY_URL"]
WEBHOOK_CA_FILE: str = _options["WEBHOOK_CA_FILE"]
LOGIN_FAILURE_LIMIT: int = _options["LOGIN_FAILURE_LIMIT"]
LOGIN_COOLOFF: float = _options["LOGIN_COOLOFF"]

INSTALLED_APPS = [
    "console.apps.ConsoleConfig",  # before the admin, whose templates it changes
    "console.apps.TriggersAdminConfig",
    "core",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",  # `runserver` serves static files as gunicorn does
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_rq",
    "axes",
    "csp",
    "orgs",
    "events",
    "webhooks",
]

MIDDLEWARE = [
    "core.middleware.RequestMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",  # so early that refusals by those below have its header
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "triggers_project.urls"
WSGI_APPLICATION = "triggers_project.wsgi.application"
APPEND_SLASH = True
# Empty where there is no prefix, so that Django never takes one from a request; see core.url_prefix.
FORCE_SCRIPT_NAME = URL_PREFIX

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# --- PostgreSQL ---------------------------------------------------------------------------------
DATABASES = {"default": environ.Env.db_url_config(DATABASE_URL)}
DATABASES["default"].update(
    ENGINE="core.postgresql",
    CONN_MAX_AGE=0,  # the pool keeps connections, Django must not
    CONN_HEALTH_CHECKS=False,  # core.postgresql checks on borrow
    # A cursor that the server keeps between transactions would stay behind a pooler's back.
    DISABLE_SERVER_SIDE_CURSORS=True,
)
DATABASES["default"].setdefault("OPTIONS", {}).update(
    application_name="triggers-api",
    connect_timeout=5,
    prepare_threshold=3 if DB_PREPARED_STATEMENTS else None,
    pool={
        "min_size": 1,
        "max_size": DB_POOL_SIZE + DB_POOL_MAX_OVERFLOW,
        "timeout": DB_POOL_TIMEOUT,
        "max_lifetime": DB_POOL_MAX_LIFETIME,
        "max_idle": 300,
        # A failed attempt to connect is given up soon; the next caller starts a new one.
        "reconnect_timeout": 2,
        "connection_class": WatchedConnection,
    },
)
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
USE_I18N = False

# --- Redis or Valkey: wake-ups, throttles, caches; nothing that can't be lost ---------------------
_REDIS = {
    "BACKEND": "django_redis.cache.RedisCache",
    "LOCATION": REDIS_URL,
    "KEY_PREFIX": "triggers",
}
_REDIS_OPTIONS = {
    "CONNECTION_FACTORY": "core.redis_connections.ConnectionFactory",
    "SOCKET_CONNECT_TIMEOUT": 0.25,
    "SERIALIZER": "django_redis.serializers.json.JSONSerializer",
}
CACHES = {
    "default": {
        **_REDIS,
        "OPTIONS": {
            **_REDIS_OPTIONS,
            "SOCKET_TIMEOUT": 0.5,
            # One attempt: core.redis decides what to do without Redis, and when to try again.
            "CONNECTION_POOL_KWARGS": {"retry": Retry(NoBackoff(), 0)},
        },
    },
    # RQ's connections wait for jobs: RQ sets their timeout.
    "rq": {**_REDIS, "OPTIONS": {**_REDIS_OPTIONS, "POOL": "rq", "SOCKET_CONNECT_TIMEOUT": 5}},
}
RQ_QUEUES = {
    name: {"USE_REDIS_CACHE": "rq", "SERIALIZER": "rq.serializers.JSONSerializer", "DEFAULT_TIMEOUT": 180}
    for name in ("events", "webhooks")
}
# What a job on each queue calls: `core.wakeups` names these functions to RQ and refuses any other.
WAKE_UP_JOBS = {
    "events": "triggers_project.jobs.process_events",
    "webhooks": "triggers_project.jobs.deliver_webhooks",
}
RQ = {
    "WORKER_CLASS": "triggers_project.worker.TriggersWorker",
    "JOB_CLASS": "core.wakeups.WakeUp",
    "COMMIT_MODE": "auto",
    "DEFAULT_RESULT_TTL": 0,
}
# Its pages are mounted in urls.py, behind permissions; the link would be a second way without them.
RQ_SHOW_ADMIN_LINK = False

# --- HTTP API -----------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["orgs.authentication.ApiKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["orgs.permissions.HasScope"],
    "DEFAULT_PARSER_CLASSES": ["core.drf.JSONBody"],
    "DEFAULT_RENDERER_CLASSES": ["core.json_response.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "core.openapi.generator.ApiSchema",
    "EXCEPTION_HANDLER": "core.exceptions.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_METADATA_CLASS": "core.drf.NoMetadata",
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "core.drf.JSONOnlyNegotiation",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Triggers API",
    "DESCRIPTION": (BASE_DIR / "triggers_project" / "api_description.md").read_text(encoding="utf-8"),
    "VERSION": "1.0.0",
    "OAS_VERSION": "3.1.0",
    "LICENSE": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    "TAGS": [
        {"name": "Events", "description": "Send events and read them back."},
        {"name": "Subscriptions", "description": "Who receives which events."},
        {"name": "Deliveries", "description": "What became of each event for each subscription."},
        {"name": "Keys", "description": "API keys and what they may do."},
        {"name": "Account", "description": "Who the key is, and who did what."},
        {"name": "Health", "description": "How the system is."},
        {"name": "Webhooks", "description": "What your endpoint gets."},
    ],
    "COMPONENT_SPLIT_REQUEST": True,
    "SORT_OPERATION_PARAMETERS": False,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "POSTPROCESSING_HOOKS": [
        "core.openapi.generator.add_shared_components",
        "webhooks.api.openapi.add_webhook_body",
        "triggers_project.openapi.add_health",
    ],
    "SERVERS": [{"url": URL_PREFIX}] if URL_PREFIX else [],
    "WEBHOOKS": ["webhooks.api.openapi.event_webhook"],
    "SERVE_AUTHENTICATION": [],
    "SERVE_PERMISSIONS": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "docExpansion": "list", "filter": True},
}
# core.json_body limits bodies, with a 413; Django's own bound would answer 400.
DATA_UPLOAD_MAX_MEMORY_SIZE = None
DATA_UPLOAD_MAX_NUMBER_FIELDS = 2000

# --- Admin and browser --------------------------------------------------------------------------
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
AXES_FAILURE_LIMIT = _options["LOGIN_FAILURE_LIMIT"]
AXES_COOLOFF_TIME = LOGIN_COOLOFF / 3600
AXES_CLIENT_IP_CALLABLE = "core.client_address.lockout_address"
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_VERBOSE = False
AXES_ENABLE_ADMIN = False
LOGIN_URL = "admin:login"
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"  # a cookie of its own would be for /

SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_PATH = CSRF_COOKIE_PATH = f"{URL_PREFIX}/"
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_AGE = 12 * 3600
CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = USE_HTTPS
SECURE_SSL_REDIRECT = USE_HTTPS
# Load balancers ask on plain HTTP inside the network, with or without the prefix.
SECURE_REDIRECT_EXEMPT = [rf"^{URL_PREFIX[1:]}/?api/health$"]
SECURE_HSTS_SECONDS = 31536000 if USE_HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = USE_HTTPS
SECURE_HSTS_PRELOAD = USE_HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if USE_HTTPS else None
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "object-src": ["'none'"],
    }
}

STATIC_URL = f"{URL_PREFIX}/static/"
STATIC_ROOT = BASE_DIR / ".local" / "static" if ENVIRONMENT == "development" else BASE_DIR / "staticfiles"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
}
WHITENOISE_USE_FINDERS = ENVIRONMENT == "development"

# --- Logs: one JSON line for each thing that happened --------------------------------------------
LOGGING_CONFIG = None
configure_logging(level=LOG_LEVEL)
