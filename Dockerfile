# The sidecar as an image.
#
#   docker build -t ratelimiter .
#   docker run --read-only --cap-drop ALL -p 8080:8080 -v "$PWD/config:/etc/ratelimiter:ro" \
#     -e RATELIMITER_CONFIG=/etc/ratelimiter/quickstart.yaml ratelimiter
#
# The digest is what is built on, the tag says to people what that is. To follow a newer tag, pull it and take the
# digest that `docker image inspect --format '{{.RepoDigests}}' TAG` shows.
ARG PYTHON=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# The packages first: they change less often than we do.
COPY deploy/image/build-requirements.txt deploy/image/requirements.txt ./
RUN pip install --require-hashes --only-binary :all: -r build-requirements.txt \
    && python -m venv --without-pip /opt/ratelimiter \
    && pip --python /opt/ratelimiter/bin/python install --require-hashes --only-binary :all: -r requirements.txt
COPY LICENSE pyproject.toml README.md ./
COPY ratelimiter ratelimiter
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /opt/ratelimiter/bin/python install --no-deps --no-index --find-links dist ratelimiter-service

FROM ${PYTHON}
LABEL org.opencontainers.image.title="ratelimiter" \
      org.opencontainers.image.description="Strict rate limiting for APIs, as a proxy in front of any HTTP service" \
      org.opencontainers.image.licenses="Apache-2.0"
# Nothing in here can install anything.
RUN python -m pip uninstall --yes --root-user-action=ignore pip setuptools wheel \
    && rm -r /usr/local/lib/python3.11/ensurepip
COPY --from=build /opt/ratelimiter /opt/ratelimiter
# The root file system is to be mounted read-only, so the interpreter does not try to write into it.
ENV PATH=/opt/ratelimiter/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RATELIMITER_CONFIG=/etc/ratelimiter/policy.yaml
USER 65532:65532
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
# Asks what the orchestrator's probe asks; an image without curl still has Python.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/opt/ratelimiter/bin/python", "-ISc", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 9090, timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["/opt/ratelimiter/bin/ratelimiter"]
# In a pod or with `--network container:APP` the service is at our own loopback; elsewhere name another --upstream.
CMD ["proxy", "--upstream", "http://127.0.0.1:8000", "--listen", "0.0.0.0:8080", "--admin", "0.0.0.0:9090"]
