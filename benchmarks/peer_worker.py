"""Run the daemon of osml-model-runner 2.3.0, in an environment with ``osml-model-runner==2.3.0``."""

from aws.osml.model_runner.model_runner import ModelRunner

ModelRunner().run()
