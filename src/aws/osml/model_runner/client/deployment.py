"""Names of the queues, tables and buckets of a deployment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from aws.osml.model_runner.exceptions import ConfigurationError, Problem


@dataclass(frozen=True)
class Deployment:
    """``settings`` maps the variables of a worker to the names, URLs and ARNs of its resources."""

    settings: Mapping[str, str]

    @classmethod
    def from_stack(cls, name: str, cloudformation: Any) -> "Deployment":
        """Return the deployment that the stack ``name`` of ``deploy/data-plane.yaml`` made.

        Raises:
            ConfigurationError: the stack does not exist, or is not a data plane.
        """
        try:
            outputs = cloudformation.describe_stacks(StackName=name)["Stacks"][0].get("Outputs", [])
        except ClientError as err:
            raise ConfigurationError(f"the stack {name} cannot be read: {err}") from err
        # The template names the variable of an output in its description.
        settings = {output.get("Description", ""): output["OutputValue"] for output in outputs}
        if "IMAGE_QUEUE" not in settings:
            raise ConfigurationError(f"the stack {name} has no output for IMAGE_QUEUE: it is not a data plane")
        return cls(settings)

    def setting(self, name: str) -> str:
        """Return a setting; raise ConfigurationError where it is missing."""
        value = self.settings.get(name, "").strip()
        if not value:
            raise ConfigurationError(
                "a setting of the deployment is missing",
                [Problem(name, "unset", "a variable, or an output of a stack")],
            )
        return value
