"""The peer's daemon; runs in an environment with ``osml-model-runner==2.3.0``, not in ours."""

from aws.osml.model_runner.model_runner import ModelRunner

ModelRunner().run()
