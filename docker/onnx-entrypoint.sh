#!/bin/sh
# Becomes the model's server. SageMaker passes the argument serve, which is ignored, and unpacks the model first.
set -eu
exec model-runner model "${MODEL:-/opt/ml/model}" --host 0.0.0.0 --port "${SAGEMAKER_BIND_TO_PORT:-8080}"
