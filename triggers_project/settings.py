"""The one settings module. What an operator can choose is declared in `options/declarations.py`."""

from __future__ import annotations

import os
from pathlib import Path

import environ
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.logs import configure_logging
from core.postgresql.base import WatchedConnection
from triggers_project.options import read_local_env, read_options
from triggers_project.options.declarations import *

BASE_DIR = Path(__file__).resolve().parent.parent

read_local_env()
# Every setting that an operator can choose.  The import says the names and, to a type checker, their types; the values
# come from the environment, and all that are wrong are refused at once.
globals().update(read_options(os.environ))

# 127.0.0.1 is how a container asks itself whether it is healthy.
ALLOWED_HOSTS = [*ALLOWED_HOSTS, "127.0.0.1"]

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
    "portal",
    "triggers_project",  # for its page of the admin
]

MIDDLEWARE = [
    "core.middleware.RequestMiddleware",
    "core.cors.CorsMiddleware",
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
# The admin shows times as the console's own pages do, and says their zone.
FORMAT_MODULE_PATH = "triggers_project.formats"

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
    "CONTACT": {"name": "Whoever runs this server"},
    "LICENSE": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    "TAGS": [
        {"name": "Events", "description": "Send events and read them back."},
        {"name": "Event types", "description": "Which types of events there are, and what their data looks like."},
        {"name": "Subscriptions", "description": "Who receives which events."},
        {"name": "Hooks", "description": "Subscriptions as automation platforms make them."},
        {"name": "Inbox", "description": "Fetch events instead of receiving webhooks."},
        {"name": "Deliveries", "description": "What became of each event for each subscription."},
        {"name": "Portal", "description": "Pages for your customers, without an account."},
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
        "core.deprecations.mark_deprecations",
        "triggers_project.openapi.name_enums",
    ],
    "SERVERS": [{"url": URL_PREFIX or "/", "description": "The server that this document comes from."}],
    "WEBHOOKS": [
        "webhooks.api.openapi.event_webhook",
        "webhooks.api.openapi.cloud_event_webhook",
        "webhooks.api.openapi.binary_cloud_event_webhook",
        "webhooks.api.openapi.legacy_webhook",
        "webhooks.api.openapi.raw_webhook",
        "webhooks.api.openapi.transformed_webhook",
    ],
    "SERVE_AUTHENTICATION": [],
    "SERVE_PERMISSIONS": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "docExpansion": "list", "filter": True},
}
# core.json_body limits bodies, with a 413; Django's own bound would return 400.
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
AXES_FAILURE_LIMIT = LOGIN_FAILURE_LIMIT
AXES_COOLOFF_TIME = LOGIN_COOLOFF / 3600
AXES_CLIENT_IP_CALLABLE = "core.client_address.lockout_address"
AXES_LOCKOUT_CALLABLE = "core.error_pages.locked_out"
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_VERBOSE = False
AXES_ENABLE_ADMIN = False
LOGIN_URL = "admin:login"
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"  # a separate cookie would be for /

SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_PATH = CSRF_COOKIE_PATH = f"{URL_PREFIX}/"
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_AGE = 12 * 3600
CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = USE_HTTPS
SECURE_SSL_REDIRECT = USE_HTTPS
# Load balancers ask on plain HTTP inside the network, with or without the prefix.
SECURE_REDIRECT_EXEMPT = [rf"^{URL_PREFIX[1:]}/?(api/health|metrics)$"]
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
# Found when they are asked for: changes show without a restart, and nothing that starts opens each of them first.
WHITENOISE_USE_FINDERS = WHITENOISE_AUTOREFRESH = ENVIRONMENT == "development"

# --- E-mail to the operator -----------------------------------------------------------------------
EMAIL_USE_TLS = EMAIL_SECURITY == "starttls"
EMAIL_USE_SSL = EMAIL_SECURITY == "tls"
EMAIL_TIMEOUT = 10
EMAIL_SUBJECT_PREFIX = ""

# --- Logs: one JSON line for each thing that happened --------------------------------------------
LOGGING_CONFIG = None
configure_logging(level=LOG_LEVEL)
