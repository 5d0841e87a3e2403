"""Every setting that an operator can choose: the section of its table, its kind, its default, and what it means.

To add one, declare it here, and run `python -m scripts.reference_docs` for the documentation.  Its value is then
`settings.NAME`.  Don't import a name from here: it is the declaration, not the value.
"""

from triggers_project.options import kinds
from triggers_project.options.option import Section

# --- The process ------------------------------------------------------------------------------------
_process = Section("The process")
ENVIRONMENT = _process.option(
    kinds.one_of("production", "development"),
    "production",
    "In `production`, nothing starts with DEBUG, a missing secret, or a missing encryption key.",
)
DATABASE_URL = _process.option(
    kinds.url("postgres", "postgresql"),
    "",
    "PostgreSQL, such as `postgres://user:password@host:5432/triggers`. Required.",
)
REDIS_URL = _process.option(
    kinds.url("redis", "rediss", "unix"),
    "",
    "Redis or Valkey, such as `redis://host:6379/0`. Required.",
)
REDIS_SENTINELS = _process.option(
    kinds.hosts_with_ports,
    "",
    "Sentinels that know the primary, e.g. `sentinel-1:26379,sentinel-2:26379`; the host in `REDIS_URL` is then the "
    "name they know it by, e.g. `redis://mymaster/0`.",
)
REDIS_SENTINEL_PASSWORD = _process.option(
    kinds.text,
    "",
    "The sentinels' own password, if they have one.",
)
SECRET_KEY = _process.option(
    kinds.text,
    "",
    "Django's secret key (sessions, CSRF). At least 32 characters. Required.",
)
SECRETS_ENCRYPTION_KEYS = _process.option(
    kinds.fernet_keys,
    "",
    "Fernet keys that encrypt the credentials of subscriptions and kept exchanges at rest, newest first. Required.",
)
DEBUG = _process.option(
    kinds.boolean,
    "false",
    "Django's debug pages. Never in production.",
)
ALLOWED_HOSTS = _process.option(
    kinds.host_names,
    "localhost,127.0.0.1,[::1]",
    "Host names that requests may be sent to, separated by commas.",
)
CSRF_TRUSTED_ORIGINS = _process.option(
    kinds.origins,
    "",
    "Origins that the admin is served from behind a proxy, such as `https://a.example`.",
)
CORS_ALLOWED_ORIGINS = _process.option(
    kinds.origins,
    "",
    "Origins whose pages may use the API, such as `https://tool.example`. Anybody who opens such a page sees its key.",
)
USE_HTTPS = _process.option(
    kinds.boolean,
    "true in production, else false",
    "Secure cookies, HSTS, and a redirect to https; `X-Forwarded-Proto` is trusted.",
    derive=lambda values: "true" if values["ENVIRONMENT"] == "production" else "false",
)
TRUSTED_PROXIES = _process.option(
    kinds.integer(0, 10),
    "0",
    "How many reverse proxies in front append to `X-Forwarded-For`; 0 means that the peer's address is the client's.",
)
URL_PREFIX = _process.option(
    kinds.url_prefix,
    "",
    "Path under which everything is served, such as `/triggers`. Not `api`, `static`, `portal`, or ADMIN_PATH.",
)
ADMIN_PATH = _process.option(
    kinds.path_segment,
    "admin",
    "Path segment of the Django admin; not `api`, `static`, or `portal`.",
)
LOG_LEVEL = _process.option(
    kinds.one_of("DEBUG", "INFO", "WARNING", "ERROR"),
    "INFO",
    "Level of the JSON log on stderr.",
)

# --- Web server, read by gunicorn.conf.py -----------------------------------------------------------
_web = Section("Web server")
WEB_CONCURRENCY = _web.option(
    kinds.integer(1, 1000),
    "2",
    "gunicorn's worker processes.",
)
WEB_THREADS = _web.option(
    kinds.integer(1, 200),
    "8",
    "Threads of each gunicorn worker process for what Django serves; accepting events doesn't use them.",
)
PORT = _web.option(
    kinds.integer(1, 65535),
    "8000",
    "Port that gunicorn listens on, on all addresses.",
)
BIND = _web.option(
    kinds.text,
    "0.0.0.0:PORT",
    "What gunicorn listens on instead, such as `127.0.0.1:8000` or `unix:/run/triggers.sock`.",
    derive=lambda values: f"0.0.0.0:{values['PORT']}",
)
GUNICORN_LOG_LEVEL = _web.option(
    kinds.one_of("debug", "info", "warning", "error", "critical"),
    "warning",
    "Level of gunicorn's own log on stderr.",
)

# --- Database connections ---------------------------------------------------------------------------
_database = Section("Database connections")
DB_POOL_SIZE = _database.option(
    kinds.integer(1, 500),
    "max(4, WEB_THREADS)",
    "Connections that a process may keep open. The default is one per thread that talks to the database.",
    derive=lambda values: str(max(4, values["WEB_THREADS"])),
)
DB_POOL_MAX_OVERFLOW = _database.option(
    kinds.integer(0, 500),
    "2",
    "Additional connections under load, beyond DB_POOL_SIZE.",
)
DB_POOL_TIMEOUT = _database.option(
    kinds.duration(0.1, 300),
    "30s",
    "Longest wait for a free connection.",
)
DB_POOL_MAX_LIFETIME = _database.option(
    kinds.duration(10, 86400),
    "1h",
    "Age at which a connection is replaced.",
)
DB_PREPARED_STATEMENTS = _database.option(
    kinds.boolean,
    "true",
    "Use prepared statements. Set to `false` behind a pooler in transaction mode that doesn't support them.",
)

# --- Accepting events -------------------------------------------------------------------------------
_accepting = Section("Accepting events")
MAX_EVENT_BYTES = _accepting.option(
    kinds.integer(1024, 16 * 1024 * 1024, "bytes"),
    "262144",
    "Largest body of `POST /api/events`; a larger one gets a 413.",
)
MAX_BATCH_BYTES = _accepting.option(
    kinds.integer(1024, 64 * 1024 * 1024, "bytes"),
    "5242880",
    "Largest body of `POST /api/events/batch`.",
)
MAX_BATCH_EVENTS = _accepting.option(
    kinds.integer(1, 10_000),
    "1000",
    "Most events in one batch.",
)
MAX_JSON_DEPTH = _accepting.option(
    kinds.integer(2, 500),
    "64",
    "Deepest nesting that a request's JSON may have.",
)
DEDUP_WINDOW = _accepting.option(
    kinds.duration(1, 90 * 86400),
    "24h",
    "How long a `dedup_id` is remembered.",
)
MAX_QUEUE_LENGTH = _accepting.option(
    kinds.integer(1, 10_000_000),
    "100000",
    "Accepted but unprocessed events, of all organizations together, above which `POST /api/events` returns 503. "
    "Protects the disk.",
)
MAX_WAITING_EVENTS = _accepting.option(
    kinds.integer(1, 10_000_000),
    "20000",
    "Accepted but unprocessed events of one organization above which its `POST /api/events` returns 429.",
)
MAX_WAITING_DELIVERIES = _accepting.option(
    kinds.integer(1, 100_000_000),
    "1000000",
    "Pending and held deliveries of one organization above which its `POST /api/events` returns 429.",
)
DEFAULT_EVENTS_PER_MINUTE = _accepting.option(
    kinds.integer(0, 100_000_000),
    "60000",
    "Rate limit of a new organization; 0 means no limit.",
)
DEFAULT_RETENTION_DAYS = _accepting.option(
    kinds.integer(1, 3650, "days"),
    "30",
    "Days that a new organization's completed events are kept.",
)
ROLLUP_RETENTION_DAYS = _accepting.option(
    kinds.integer(7, 3650, "days"), "30", "Days that the console's daily figures are kept."
)
PARTITION_DAYS = _accepting.option(
    kinds.integer(1, 3650, "days"),
    "7",
    "Days of events, with what belongs to them, in one partition. Partitions that exist keep their length.",
)
HELD_RETENTION_DAYS = _accepting.option(
    kinds.integer(0, 3650, "days"),
    "90",
    "Days after which a delivery that is held is cancelled; 0 keeps it until it is resumed.",
)
AUTH_FAILURES_PER_MINUTE = _accepting.option(
    kinds.integer(1, 1_000_000),
    "60",
    "Failed authentications per client address and minute; more get a 429.",
)
MAX_API_KEYS = _accepting.option(
    kinds.integer(1, 1_000_000),
    "1000",
    "Most API keys of one organization; revoked and expired ones don't count.",
)
MAX_EVENT_TYPES = _accepting.option(
    kinds.integer(1, 100_000),
    "1000",
    "Most event types in the catalog of one organization.",
)
MAX_SUBSCRIPTIONS = _accepting.option(
    kinds.integer(1, 1_000_000),
    "1000",
    "Most subscriptions of one organization.",
)

# --- Workers ----------------------------------------------------------------------------------------
_workers = Section("Workers")
MAX_CONCURRENT_EVENTS = _workers.option(
    kinds.integer(1, 10_000),
    "1000",
    "Events that a worker claims and fans out at a time.",
)
MAX_CONCURRENT_DELIVERIES = _workers.option(
    kinds.integer(1, 10_000),
    "512",
    "Deliveries that each of a worker's two processes has in flight.",
)
MAX_CONNECTIONS_PER_HOST = _workers.option(
    kinds.integer(1, 10_000),
    "256",
    "Requests that each of a worker's two processes has in flight to one host and port.",
)
MAX_IN_FLIGHT_PER_SUBSCRIPTION = _workers.option(
    kinds.integer(1, 10_000),
    "256",
    "Deliveries in flight to one subscription, over all workers; a subscription may override it.",
)
INITIAL_CONCURRENCY_WINDOW = _workers.option(
    kinds.integer(1, 1000),
    "4",
    "Deliveries in flight to a subscription that hasn't had a success yet; each success allows one more.",
)
EVENT_MAX_ATTEMPTS = _workers.option(
    kinds.integer(1, 100),
    "5",
    "Failed fan-outs after which an event is in `error`.",
)
SWEEP_INTERVAL = _workers.option(
    kinds.duration(0.05, 60),
    "1s",
    "How often a worker looks for work without a wake-up.",
)
WORKER_SHUTDOWN_GRACE = _workers.option(
    kinds.duration(0, 600),
    "35s",
    "After SIGTERM, how long requests in flight may finish before their leases are released.",
)
WORKER_HEARTBEAT_FILE = _workers.option(
    kinds.writable_file,
    "",
    "File that a worker touches while its threads run, for a health check; empty means none.",
)

# --- Deliveries -------------------------------------------------------------------------------------
_deliveries = Section("Deliveries")
DISABLE_WEBHOOK_DELIVERY = _deliveries.option(
    kinds.boolean,
    "false",
    "Keep deliveries pending and don't send any.",
)
DELIVERY_RETRY_SCHEDULE = _deliveries.option(
    kinds.schedule,
    "0s,5s,5m,30m,2h,5h,10h,10h",
    "Delay before each attempt; the number of entries is the number of attempts.",
)
DELIVERY_RETRY_JITTER = _deliveries.option(
    kinds.number(0, 0.5),
    "0.1",
    "Share of each retry's delay by which it varies at random, up or down. The first attempt isn't delayed by it.",
)
DELIVERY_TIMEOUT = _deliveries.option(
    kinds.duration(0.1, 300),
    "30s",
    "Total time of one attempt: resolving, connecting, sending, and reading.",
)
LEASE_MARGIN = _deliveries.option(
    kinds.duration(1, 3600),
    "30s",
    "How much longer than DELIVERY_TIMEOUT a worker's lease on a delivery lasts; when it ends, another worker may "
    "take the delivery.",
)
RETRY_AFTER_MAX = _deliveries.option(
    kinds.duration(1, 86400),
    "1h",
    "Longest `Retry-After` of an endpoint that is honored.",
)
RESPONSE_BODY_BYTES = _deliveries.option(
    kinds.integer(0, 65536, "bytes"),
    "1024",
    "Bytes of an endpoint's response stored with an attempt.",
)
DISABLE_AFTER_FAILING_FOR = _deliveries.option(
    kinds.duration(1, 365 * 86400),
    "5d",
    "How long a subscription may fail without a success before it is disabled.",
)
BREAKER_THRESHOLD = _deliveries.option(
    kinds.integer(0, 10_000),
    "10",
    "Consecutive failures that open a subscription's circuit breaker; 0 means never.",
)
BREAKER_BASE_DELAY = _deliveries.option(
    kinds.duration(0.01, 3600),
    "5s",
    "Pause after a circuit breaker opens for the first time; doubles each time.",
)
BREAKER_MAX_DELAY = _deliveries.option(
    kinds.duration(0.01, 86400),
    "60s",
    "Longest pause of an open circuit breaker between probes.",
)
DNS_CACHE_TTL = _deliveries.option(
    kinds.duration(0, 300),
    "10s",
    "How long a worker keeps a resolved address.",
)
WEBHOOK_DNS_SERVERS = _deliveries.option(
    kinds.name_servers,
    "",
    "Name servers for endpoints' host names, such as `10.0.0.2,[fd00::2]:53`; empty uses the system's resolver.",
)

# --- Egress -----------------------------------------------------------------------------------------
_egress = Section("Egress")
WEBHOOK_ALLOWED_SUBNETS = _egress.option(
    kinds.networks,
    "",
    "Private networks that webhooks may be sent to, such as `10.20.0.0/16`.",
)
WEBHOOK_ALLOWED_PORTS = _egress.option(
    kinds.ports,
    "",
    "Ports that webhooks may be sent to; empty allows all but well-known ports of other protocols.",
)
WEBHOOK_PROXY_URL = _egress.option(
    kinds.url("http", "https"),
    "",
    "Forward proxy for all deliveries; it then decides which addresses are reached.",
)
WEBHOOK_CA_FILE = _egress.option(
    kinds.readable_file,
    "",
    "PEM file of additional certificate authorities to trust for endpoints' certificates.",
)

# --- The portal -------------------------------------------------------------------------------------
_portal = Section("The portal")
PORTAL_URL = _portal.option(
    kinds.public_origin,
    "",
    "Where tenants' browsers reach this installation, such as `https://hooks.example.com`; links to the portal "
    "and in notifications begin with it. Empty takes the host at which the link was made.",
)
PORTAL_FRAME_ORIGINS = _portal.option(
    kinds.frame_origins,
    "",
    "Sites that may show the portal in a frame, such as `https://app.example.com`; empty means none. Needs HTTPS.",
)
PORTAL_NAME = _portal.option(
    kinds.text,
    "Webhooks",
    "Name at the top of the portal's pages.",
)
PORTAL_COLOR = _portal.option(
    kinds.color,
    "#1f5fbf",
    "Color of the portal's buttons and links. Where it would be hard to read, it is made darker or lighter.",
)
PORTAL_LOGO_URL = _portal.option(
    kinds.image_url,
    "",
    "Logo at the top of the portal's pages; empty means none.",
)

# --- Admin log-in -----------------------------------------------------------------------------------
_login = Section("Admin log-in")
LOGIN_FAILURE_LIMIT = _login.option(
    kinds.integer(1, 1000),
    "10",
    "Failed admin log-ins per address and user name before further ones are locked out.",
)
LOGIN_COOLOFF = _login.option(
    kinds.duration(1, 86400),
    "15m",
    "How long the lockout lasts.",
)

# --- Monitoring -------------------------------------------------------------------------------------
_monitoring = Section("Monitoring")
METRICS_DIR = _monitoring.option(
    kinds.writable_folder,
    "",
    "Folder that web processes and workers of one machine share and keep their metrics in, best in memory, such as "
    "`/run/triggers/metrics`; empty turns metrics off.",
)
METRICS_TOKEN = _monitoring.option(
    kinds.text,
    "",
    "Bearer token with which `GET /metrics` of the web server responds; without it, there is no such page.",
)
METRICS_BIND = _monitoring.option(
    kinds.address_with_port,
    "",
    "Address and port that serve `/metrics` to everybody who reaches it, such as `127.0.0.1:9464`.",
)
OTEL_EXPORTER_OTLP_ENDPOINT = _monitoring.option(
    kinds.url("http", "https"),
    "",
    "OpenTelemetry collector that traces are sent to by OTLP over HTTP, such as `http://127.0.0.1:4318`; empty means "
    "none. Needs the packages of requirements-otel.txt.",
)

# --- Notifications ----------------------------------------------------------------------------------
_notifications = Section("Notifications")
NOTIFY_FAILING_AFTER = _notifications.option(
    kinds.duration(0, 86400 * 30),
    "5m",
    "How long an endpoint has to fail before a notification is sent; if it recovers sooner, none is.",
)
NOTIFICATION_INTERVAL = _notifications.option(
    kinds.duration(0, 86400 * 30),
    "1h",
    "At most one notification of a kind is sent about an endpoint in this time; the rest is reported together.",
)
NOTIFY_KEY_EXPIRING_WITHIN = _notifications.option(
    kinds.duration(0, 86400 * 365),
    "7d",
    "How long before an API key expires a notification is sent; 0 means never.",
)
OPERATOR_EMAILS = _notifications.option(
    kinds.email_addresses,
    "",
    "Who gets notifications of all organizations by e-mail, separated by commas. Needs EMAIL_HOST.",
)
OPERATOR_WEBHOOK_URL = _notifications.option(
    kinds.url("http", "https"),
    "",
    "URL that gets notifications of all organizations as POST requests, such as an incoming webhook of a chat.",
)
OPERATOR_WEBHOOK_SECRET = _notifications.option(
    kinds.signing_secret,
    "",
    "`whsec_…` that signs these requests as webhooks are signed; empty sends them unsigned.",
)
EMAIL_HOST = _notifications.option(
    kinds.text,
    "",
    "Mail server.",
)
EMAIL_PORT = _notifications.option(
    kinds.integer(1, 65535),
    "587",
    "Its port.",
)
EMAIL_SECURITY = _notifications.option(
    kinds.one_of("starttls", "tls", "none"),
    "starttls",
    "How the connection to the mail server is encrypted: `starttls` (mostly port 587), `tls` (465), or `none`.",
)
EMAIL_HOST_USER = _notifications.option(
    kinds.text,
    "",
    "User name at the mail server; empty means without logging in.",
)
EMAIL_HOST_PASSWORD = _notifications.option(
    kinds.text,
    "",
    "Password at the mail server.",
)
DEFAULT_FROM_EMAIL = _notifications.option(
    kinds.email_address,
    "triggers@localhost",
    "Sender of the e-mails.",
)
