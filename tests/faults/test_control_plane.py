"""A control plane that is slow: a fleet shares what it knows of its endpoints."""

import pytest

from aws_proxy.throttling import Delays

CONTROL_PLANE = ("DescribeEndpoint", "DescribeEndpointConfig", "ListTags")
ENDPOINTS = 6


@pytest.mark.long
def test_worker_describes_no_endpoint_again_when_it_joins_fleet(new_trial, new_proxy, new_model):
    workers = 6
    model = new_model()
    names = [f"endpoint-{number}" for number in range(ENDPOINTS)]
    delays = Delays(dict.fromkeys(CONTROL_PLANE, 0.1))
    proxy = new_proxy(delays, endpoints=dict.fromkeys(names, model))
    trial = new_trial(**proxy.environment)
    trial.models.append(model)
    for name in names:
        trial.submit(trial.sagemaker_request(name, "one"))
    with trial.fleet.worker():
        trial.wait()
    known = proxy.count("sagemaker", *CONTROL_PLANE)
    assert known >= ENDPOINTS
    for name in names * workers:
        trial.submit(trial.sagemaker_request(name, "one"))
    fleet = [trial.fleet.start() for _ in range(workers)]
    trial.wait(patience_s=100.0)
    trial.check()
    trial.fleet.end(*fleet)
    assert proxy.count("sagemaker", *CONTROL_PLANE) - known <= ENDPOINTS
