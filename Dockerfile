# The engine in a container. What it has learnt and spent is in /state: one volume a public address, never a fresh one.
#
#   docker build -t engine .
#   docker run --rm -i --init --stop-timeout 30 -v engine-state:/state -v "$PWD/node.yaml:/etc/node.yaml:ro" \
#       engine verify - -o - --mode standard --identity /etc/node.yaml <list.csv >out.csv
#
# A stop (SIGTERM) ends sessions politely, which takes up to 20 s; the journal is in /state either way.
# Containers go out by the host's address: it is the identity's public_address, and needs the PTR record.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS builder
WORKDIR /src
COPY setup.cfg pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md ./
COPY policies policies
COPY engine engine
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${BASE}
RUN --mount=type=bind,from=builder,source=/wheel,target=/wheel pip install --no-cache-dir /wheel/*.whl
RUN useradd --uid 10001 --no-create-home --home-dir /state --shell /usr/sbin/nologin engine \
    && install --directory --owner=engine --group=engine --mode=0700 /state /work
ENV ENGINE_STATE=/state/state.db
VOLUME /state
WORKDIR /work
USER engine
STOPSIGNAL SIGTERM
ENTRYPOINT ["engine"]
CMD ["--help"]
