"""The maximum number of regions in progress at a SageMaker endpoint, from the vCPUs of its instances."""

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

from cachetools import TTLCache

from aws.osml.model_runner.aws.clients import AwsClients, default_clients
from aws.osml.model_runner.aws.role_session import describing_session

_CACHE_S = 60
_CACHED_ENDPOINTS = 100


class EndpointUtils:
    """The rule of self-throttling: the maximum number of regions of an endpoint follows from its vCPUs.

    ``describe`` returns DescribeEndpoint's response for an endpoint, seen under a role. A worker passes the
    descriptions that its fleet shares. Without it, the class describes endpoints itself, at most once a minute each.
    """

    def __init__(
        self,
        scale_factor: float = 10,
        workers_per_cpu: float = 1,
        clients: AwsClients | None = None,
        describe: Callable[[str, str | None], Mapping[str, Any]] | None = None,
    ) -> None:
        self.scale_factor = scale_factor
        self.workers_per_cpu = workers_per_cpu
        self.max_region_cache: TTLCache[str, int] = TTLCache(maxsize=_CACHED_ENDPOINTS, ttl=_CACHE_S)
        self._clients = clients
        self._describe = describe
        self._lock = threading.Lock()

    @property
    def clients(self) -> AwsClients:
        """The boto3 clients that make the look-ups."""
        if self._clients is None:
            self._clients = default_clients()
        return self._clients

    @property
    def ec2_client(self) -> Any:
        """The EC2 client, which looks up the vCPUs of an instance type."""
        return self.clients.client("ec2")

    def calculate_max_regions(self, endpoint_name: str, model_invocation_role: str | None = None) -> int:
        """Return floor(scale factor × vCPUs × instances / workers per CPU), summed over the endpoint's variants.

        With one ml.m5.12xlarge (48 vCPUs), a factor of 10 and one worker per CPU that is 480.
        Raises botocore's errors if the endpoint cannot be described; its capacity is then not known.
        """
        with self._lock:
            known = self.max_region_cache.get(endpoint_name)
        if known is not None:
            return known
        sagemaker = self.clients.client("sagemaker", describing_session(model_invocation_role, endpoint_name))
        if self._describe is None:
            endpoint = sagemaker.describe_endpoint(EndpointName=endpoint_name)
        else:
            endpoint = self._describe(endpoint_name, model_invocation_role)
        config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
        instance_types = {
            variant["VariantName"]: variant["InstanceType"].removeprefix("ml.")
            for variant in config["ProductionVariants"]
            if "InstanceType" in variant
        }
        vcpus = 0
        for variant in endpoint["ProductionVariants"]:
            if variant["VariantName"] in instance_types:
                names = [instance_types[variant["VariantName"]]]
                response = self.ec2_client.describe_instance_types(InstanceTypes=names)
                vcpus_each = int(response["InstanceTypes"][0]["VCpuInfo"]["DefaultVCpus"])
                vcpus += variant.get("CurrentInstanceCount", 0) * vcpus_each
        max_regions = math.floor(self.scale_factor * vcpus / self.workers_per_cpu)
        if self._describe is None:
            with self._lock:
                self.max_region_cache[endpoint_name] = max_regions
        return max_regions
