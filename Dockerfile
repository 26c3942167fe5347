# The worker, and the embedded stack for trying it out.
#
#   docker build --tag tile-model-runner .
#   docker build --tag tile-model-runner:embedded --target embedded .
#   docker build --tag tile-model-runner:onnx --target onnx .      (for docker/onnx-model.Dockerfile)
#   docker run --rm --read-only --cap-drop ALL --security-opt no-new-privileges --env-file worker.env tile-model-runner
#
# A tag moves. A release passes the digest that it was tested with: --build-arg BASE=debian@sha256:<digest>
# Both processors, x86-64 and arm64, take the same steps; nothing is compiled.
ARG BASE=debian:bookworm-slim

# ---- Debian's packages of a worker. tini is the first process: a signal ends even a worker that only starts.
FROM ${BASE} AS system
RUN apt-get update \
    && apt-get upgrade --yes \
    && apt-get install --yes --no-install-recommends ca-certificates libgdal32 python3 tini \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/log/* \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin worker \
    && mkdir -p /usr/share/tile-model-runner \
    && dpkg-query --show > /usr/share/tile-model-runner/debian-packages.txt

# ---- Python's packages of a worker, by hash. This layer stays as it is while the project changes.
FROM system AS packages
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils python3-venv \
    && cd /opt \
    && apt-get download python3-gdal \
    && dpkg-deb --extract python3-gdal_*.deb /opt/python3-gdal \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements requirements
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements/build.txt \
    && python3 -m venv --without-pip /opt/model-runner \
    && /opt/build/bin/pip --python /opt/model-runner/bin/python install --no-cache-dir --no-compile \
        --require-hashes --only-binary :all: -r requirements/runtime.txt \
    && cp -r /opt/python3-gdal/usr/lib/python3/dist-packages/GDAL-* /opt/python3-gdal/usr/lib/python3/dist-packages/osgeo \
        /opt/model-runner/lib/python3.11/site-packages/ \
    && /opt/build/bin/pip --python /opt/model-runner/bin/python check
COPY docker/aws-services.txt docker/trim-packages docker/
RUN docker/trim-packages /opt/model-runner/lib/python3.11/site-packages \
    && /opt/model-runner/bin/python -c "import cv2, osgeo.gdal_array, pyarrow.parquet, pyproj, scipy.interpolate, shapely" \
    && /opt/model-runner/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/model-runner/lib

FROM packages AS local-packages
RUN /opt/build/bin/pip --python /opt/model-runner/bin/python install --no-cache-dir \
        --require-hashes --only-binary :all: -r requirements/local.txt

FROM packages AS onnx-packages
RUN /opt/build/bin/pip --python /opt/model-runner/bin/python install --no-cache-dir \
        --require-hashes --only-binary :all: -r requirements/onnx.txt

# ---- The project, below /project: whole for the embedded stack, and below /production without that stack.
FROM packages AS project
COPY . .
# The build has no git, so a release passes its version: --build-arg VERSION=3.0.0
ARG VERSION=
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_TILE_MODEL_RUNNER="${VERSION}" \
    /opt/build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/build/bin/pip --python /opt/model-runner/bin/python install --quiet --no-deps --no-compile --root /project \
        /wheels/*.whl \
    && cp -r /project /production \
    && cd /production/opt/model-runner/lib/python3.11/site-packages \
    && rm -rf aws/osml/model_runner/local/demo aws/osml/model_runner/local/models aws/osml/model_runner/local/onnx \
        aws/osml/model_runner/local/stack \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -s /production /production \
    && python3 /build/docker/sbom.py --debian /usr/share/tile-model-runner/debian-packages.txt \
        /opt/model-runner/lib/python3.11/site-packages . > /tmp/sbom.cdx.json \
    && install -D --mode 0444 --target-directory /production/usr/share/tile-model-runner \
        /tmp/sbom.cdx.json /build/LICENSE /build/NOTICE \
    && install -D --mode 0555 /build/docker/entrypoint.sh /production/usr/local/bin/entrypoint \
    && install -D --mode 0555 /build/docker/entrypoint.sh /project/usr/local/bin/entrypoint

FROM system AS runtime
# Only /tmp is written to, so the root file system may be read-only. On ECS a volume takes the mode of this folder.
ENV HEALTH_FILE=/tmp/model-runner-health.json \
    PATH=/opt/model-runner/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
VOLUME ["/tmp"]
USER 10001:10001
WORKDIR /tmp
# Reads in the running worker's health file when it last made progress.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["model-runner", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/local/bin/entrypoint"]
CMD ["serve"]

FROM runtime AS embedded
COPY --from=local-packages /opt/model-runner /opt/model-runner
COPY --from=project /project/ /

FROM runtime AS onnx
COPY --from=onnx-packages /opt/model-runner /opt/model-runner
COPY --from=project /project/ /

FROM runtime AS worker
COPY --from=packages /opt/model-runner /opt/model-runner
COPY --from=project /production/ /
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="OSML Model Runner" \
    org.opencontainers.image.description="Runs detection models over very large images" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
