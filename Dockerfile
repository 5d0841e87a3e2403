# Build stage: install the packages into a virtual environment and collect the static files.
FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
COPY requirements.txt requirements-otel.txt /build/
# With what traces need, which nothing imports before OTEL_EXPORTER_OTLP_ENDPOINT is set.
RUN pip install --only-binary=:all: -r /build/requirements.txt -r /build/requirements-otel.txt
WORKDIR /app
COPY manage.py gunicorn.conf.py ./
COPY core core
COPY orgs orgs
COPY events events
COPY webhooks webhooks
COPY portal portal
COPY console console
COPY triggers_project triggers_project
# collectstatic needs valid settings. These secrets are random and aren't kept.
RUN python -m compileall -q core orgs events webhooks portal console triggers_project \
 && DATABASE_URL=postgres://build@localhost/build REDIS_URL=redis://localhost \
    SECRET_KEY="$(python -c 'import secrets; print(secrets.token_urlsafe(48))')" \
    SECRETS_ENCRYPTION_KEYS="$(python -c 'import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())')" \
    python manage.py collectstatic --noinput --verbosity 0

# Final stage: no build tools, and not as root.
FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin triggers
COPY --from=build /venv /venv
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ENVIRONMENT=production PORT=8000
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os,urllib.request as u; u.urlopen('http://127.0.0.1:%s/api/health' % os.environ['PORT'], timeout=4)"]
CMD ["gunicorn", "-c", "gunicorn.conf.py", "triggers_project.asgi"]
