# The engine in a container. What it has learnt and spent is in /state: one volume a public address, never a fresh one.
#
#   docker build -t engine .
#   docker run --rm -i --read-only --tmpfs /tmp --stop-timeout 30 -v engine-state:/state \
#       -v "$PWD/node.yaml:/etc/engine/engine.yaml:ro" engine verify - -o - --mode standard <list.csv >out.csv
#
# 1. Root's file system may be read-only: only /state (and /work, where a job's files go) are written, /tmp is scratch.
# 2. It runs as user 10001. A folder that is mounted on /work or /state has to belong to that user.
# 3. SIGTERM ends sessions politely, which takes up to 20 s; the journal is on disk either way. tini is PID 1, because
#    the kernel keeps a signal from a PID 1 that has not yet asked for it, and a lab's process wants to be reaped.
# 4. Policies of one's own: mount them and set ENGINE_POLICIES to the folder; a changed file is read at once.
# 5. Containers go out by the host's address: it is the identity's public_address, and needs the PTR record.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS builder
RUN apt-get update && apt-get install -y --no-install-recommends \
        gcc=4:12.* libc6-dev=2.36-* tini=0.19.* \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt setup.py setup.cfg pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md ./
COPY policies policies
COPY engine engine
# Compiled, it takes a quarter less CPU (docs/performance.md); the compiler wants the types of what the engine imports.
# The venv has no pip of its own: what goes into the last stage can run, and build nothing.
RUN pip install --no-cache-dir --constraint constraints.txt . setuptools mypy types-PyYAML \
    && ENGINE_COMPILED=1 pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel . \
    && python -m venv --without-pip /opt/engine \
    && pip --python /opt/engine/bin/python install --no-cache-dir --constraint constraints.txt /wheel/*.whl

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="probe-engine" \
      org.opencontainers.image.description="Asks mail servers whether mailboxes exist, without sending mail" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN pip uninstall --yes --quiet setuptools wheel pip \
    && useradd --uid 10001 --no-create-home --home-dir /state --shell /usr/sbin/nologin engine \
    && install --directory --owner=engine --group=engine --mode=0700 /state /work
COPY --from=builder /usr/bin/tini-static /usr/bin/tini
COPY --from=builder /opt/engine /opt/engine
ENV PATH=/opt/engine/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/state \
    ENGINE_STATE=/state/state.db \
    ENGINE_METRICS=127.0.0.1:9464
VOLUME /state
WORKDIR /work
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["engine", "doctor", "--alive"]
ENTRYPOINT ["tini", "--", "engine"]
CMD ["--help"]
