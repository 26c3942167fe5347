# An example model behind the model contract: GET /ping, POST /invocations, port 8080. For trying out and for tests.
#
#   docker build --tag tile-model-runner:embedded --target embedded .
#   docker build --tag osml-example-model --file docker/model-server.Dockerfile docker
#   docker run --rm --publish 127.0.0.1:8080:8080 osml-example-model --model flood
ARG RUNNER=tile-model-runner:embedded
# hadolint ignore=DL3006
FROM ${RUNNER}
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/ping', timeout=4)"]
EXPOSE 8080
ENTRYPOINT ["python", "-m", "aws.osml.model_runner.local.stack.model_server", "--host", "0.0.0.0", "--port", "8080"]
CMD ["--model", "centerpoint"]
