# Serves the ONNX file in /opt/ml/model by the model contract: GET /ping, POST /invocations, port 8080. One image for a
# laptop and for a SageMaker endpoint.
#
#   docker build --tag tile-model-runner:onnx --target onnx .
#   docker build --tag onnx-model --file docker/onnx-model.Dockerfile docker
#   docker run --rm --publish 127.0.0.1:8080:8080 --volume "$PWD/model:/opt/ml/model:ro" onnx-model
ARG RUNNER=tile-model-runner:onnx
# hadolint ignore=DL3006
FROM ${RUNNER}
# SageMaker may choose another port for a container with this label.
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
COPY --chmod=0555 onnx-entrypoint.sh /usr/local/bin/onnx-entrypoint
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ.get(\"SAGEMAKER_BIND_TO_PORT\", 8080)}/ping', timeout=4)"]
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/onnx-entrypoint"]
CMD ["serve"]
