# syntax=docker/dockerfile:1
# The worker. Its steps are those of scripts/bootstrap, which the tests use too.
#
#   docker build --tag tile-model-runner .
#   docker run --rm --read-only --tmpfs /tmp:rw,noexec,nosuid,size=2g --cap-drop ALL \
#       --security-opt no-new-privileges --env-file worker.env tile-model-runner
#
# A tag moves. A release passes the digest that it was tested with: --build-arg BASE=debian@sha256:<digest>
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
# runtime: the worker; local: the embedded stack too
ARG EXTRA=runtime
# A layer of its own: it stays as it is while the project changes.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libgdal-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
# The build has no git, so a release passes its version: --build-arg VERSION=3.0.0
ARG VERSION=
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_TILE_MODEL_RUNNER="${VERSION}" \
    scripts/bootstrap "${EXTRA}" --venv /opt/model-runner --no-editable --require-hashes \
    && /opt/model-runner/bin/python -m pip uninstall --yes \
        editables hatch-vcs hatchling setuptools setuptools-scm trove-classifiers vcs-versioning wheel pip

FROM ${BASE}
RUN apt-get update \
    && apt-get upgrade --yes \
    && apt-get install --yes --no-install-recommends ca-certificates libgdal32 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin worker
COPY --from=build /opt/model-runner /opt/model-runner
COPY --chmod=0555 docker/entrypoint.sh /usr/local/bin/entrypoint
# Only /tmp is written to, so the root file system may be read-only.
ENV HEALTH_FILE=/tmp/model-runner-health.json \
    PATH=/opt/model-runner/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
# Asks the running worker's health file when it last made progress.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["model-runner", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/entrypoint"]
CMD ["serve"]
