import io
import json
import os
import pty
import threading

import pytest
from aws_embedded_metrics.config import get_config
from aws_embedded_metrics.environment import environment_detector

from aws.osml.model_runner.telemetry.metrics import (
    COUNT,
    LOG_GROUP_NAME,
    MAX_MODELS,
    MILLISECONDS,
    NAMESPACE,
    OTHER_MODELS,
    PERCENT,
    SECONDS,
    SERVICE_NAME,
    MetricsRecorder,
    configure_metrics,
    create_metrics_logger,
)


@pytest.fixture
def recorder():
    return MetricsRecorder(io.StringIO())


def lines_of(recorder):
    stream = recorder.stream
    start = stream.tell()
    recorder.flush()
    return [json.loads(line) for line in stream.getvalue()[start:].splitlines()]


def test_values_of_operation_are_one_line(recorder):
    for duration in (0.5, 0.25):
        recorder.record("TileProcessing", "Duration", duration, SECONDS, ModelName="m")
        recorder.record("TileProcessing", "Invocations", 1, COUNT, ModelName="m")
    (line,) = lines_of(recorder)
    assert (line["Operation"], line["ModelName"]) == ("TileProcessing", "m")
    assert line["Duration"] == [0.5, 0.25]
    assert line["Invocations"] == [1, 1]
    (metrics,) = line["_aws"]["CloudWatchMetrics"]
    assert metrics["Namespace"] == NAMESPACE == "OSML/ModelRunner"
    assert metrics["Dimensions"] == [["Operation", "ModelName"], ["Operation"]]
    assert metrics["Metrics"] == [
        {"Name": "Duration", "Unit": "Seconds"},
        {"Name": "Invocations", "Unit": "Count"},
    ]
    assert line["_aws"]["Timestamp"] > 0


def test_each_set_of_dimensions_has_its_own_line(recorder):
    recorder.record("RegionProcessing", "Duration", 1, SECONDS, ModelName="m", InputFormat="GTIFF")
    recorder.record("RegionProcessing", "Duration", 2, SECONDS, ModelName="m", InputFormat="NITF")
    recorder.record("FeatureStorage", "Errors", 1)
    recorder.record("Scheduling", "Utilization", 50, PERCENT, ModelName="m")
    recorder.record("Scheduling", "Duration", 12, MILLISECONDS)
    lines = lines_of(recorder)
    assert [(line["Operation"], line.get("InputFormat")) for line in lines] == [
        ("RegionProcessing", "GTIFF"),
        ("RegionProcessing", "NITF"),
        ("FeatureStorage", None),
        ("Scheduling", None),
        ("Scheduling", None),
    ]
    assert not any("LogGroup" in line for line in lines)


def test_each_metric_is_written_for_all_models_together(recorder):
    recorder.record("ImageProcessing", "Errors", 1, COUNT, ModelName="m", InputFormat="GTIFF")
    recorder.record("Scheduling", "WorkWaiting", 3)
    recorder.record(None, "ApproximateNumberOfRequestsVisible", 3)
    found = [line["_aws"]["CloudWatchMetrics"][0]["Dimensions"] for line in lines_of(recorder)]
    service = [["LogGroup", "ServiceName", "ServiceType"]]
    assert found == [[["Operation", "ModelName", "InputFormat"], ["Operation"]], [["Operation"]], service]


def test_deployments_have_namespaces_of_their_own():
    recorder = MetricsRecorder(io.StringIO(), namespace="Team/ships")
    recorder.record("TileProcessing", "Errors", 1)
    assert lines_of(recorder)[0]["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Team/ships"


def test_flush_writes_once(recorder):
    recorder.record("TileProcessing", "Errors", 1)
    assert len(lines_of(recorder)) == 1
    assert lines_of(recorder) == []


def test_without_operation_service_is_dimension(recorder):
    recorder.record(None, "ApproximateNumberOfRequestsVisible", 3)
    (line,) = lines_of(recorder)
    assert line["LogGroup"] == LOG_GROUP_NAME == "/aws/OSML/MRService"
    assert (line["ServiceName"], line["ServiceType"]) == (SERVICE_NAME, "Unknown")
    assert "Operation" not in line


@pytest.mark.parametrize("count", [100, 101, 250, 1_000])
def test_long_lists_are_split_and_complete(recorder, count):
    for number in range(count):
        recorder.record("ModelInvocation", "Duration", number, SECONDS)
    recorder.record("ModelInvocation", "Errors", 1)
    lines = lines_of(recorder)
    values = [line["Duration"] if isinstance(line["Duration"], list) else [line["Duration"]] for line in lines]
    assert [number for value in values for number in value] == list(range(count))
    assert max(map(len, values)) <= 100
    assert sum(line.get("Errors", 0) for line in lines) == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", "Unknown"),
        ("  ", "Unknown"),
        ("modèle", "mod?le"),
        ("m" * 2000, "m" * 1024),
        (None, "None"),
        ("https://u:secret@host/", "https://[redacted]@host/"),
    ],
)
def test_dimension_values_fit_format(recorder, value, shown):
    recorder.record("TileProcessing", "Invocations", 1, COUNT, ModelName=value)
    assert lines_of(recorder)[0]["ModelName"] == shown


def test_values_that_are_not_finite_are_left_out(recorder):
    recorder.record("TileProcessing", "Duration", float("nan"), SECONDS)
    recorder.record("TileProcessing", "Duration", float("inf"), SECONDS)
    assert lines_of(recorder) == []


def test_timed_block_is_invocation():
    ticks = iter([10.0, 12.5, 20.0, 21.0])
    recorder = MetricsRecorder(io.StringIO(), now=lambda: next(ticks))
    with recorder.timed("TileProcessing", ModelName="m"):
        pass
    with pytest.raises(KeyError), recorder.timed("TileProcessing", ModelName="m"):
        raise KeyError
    (line,) = lines_of(recorder)
    assert (line["Duration"], line["Invocations"], line["Errors"]) == ([2.5, 1.0], [1, 1], 1)


def test_no_value_is_lost_between_threads(recorder):
    written = []

    def work():
        for _ in range(500):
            recorder.record("TileProcessing", "Invocations", 1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        written += lines_of(recorder)
    written += lines_of(recorder)
    values = [line["Invocations"] if isinstance(line["Invocations"], list) else [1] for line in written]
    assert sum(map(len, values)) == 4_000


def test_standard_output_is_default(capsys):
    recorder = MetricsRecorder()
    recorder.record("FeatureRefinement", "Invocations", 1)
    recorder.flush()
    assert json.loads(capsys.readouterr().out)["Operation"] == "FeatureRefinement"


def test_metrics_library_probes_no_environment(capsys, monkeypatch):
    async def probe():
        raise AssertionError("the network was asked")

    monkeypatch.setattr(environment_detector.EnvironmentCache, "environment", None)
    monkeypatch.setattr(environment_detector.ec2_environment, "probe", probe)
    metrics = create_metrics_logger()
    metrics.set_dimensions({"Operation": "TileProcessing"})
    metrics.put_metric("Invocations", 1, COUNT)
    metrics.flush_sync()
    line = json.loads(capsys.readouterr().out)
    assert line["Operation"] == "TileProcessing"
    assert line["_aws"]["CloudWatchMetrics"][0]["Namespace"] == NAMESPACE


def test_metrics_library_gets_service_name(monkeypatch):
    config = get_config()
    for name in ("service_name", "log_group_name", "namespace", "environment"):
        monkeypatch.setattr(config, name, getattr(config, name))
    configure_metrics()
    assert (config.service_name, config.log_group_name) == ("OSML", "/aws/OSML/MRService")
    assert (config.namespace, config.environment) == ("OSML/ModelRunner", "local")


def test_models_beyond_number_are_measured_as_one(recorder):
    """Each value of a dimension is a metric that costs money, and a sender may name any URL."""
    for number in range(MAX_MODELS + 50):
        recorder.record("ModelInvocation", "Invocations", 1, COUNT, ModelName=f"https://host/{number}")
    recorder.record("ModelInvocation", "Invocations", 1, COUNT, ModelName="https://host/0")
    measured = {line["ModelName"]: line["Invocations"] for line in lines_of(recorder)}
    assert len(measured) == MAX_MODELS + 1
    assert len(measured[OTHER_MODELS]) == 50
    assert measured["https://host/0"] == [1, 1]


def test_terminal_gets_no_metrics():
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        recorder = MetricsRecorder(stream)
        recorder.record("ModelInvocation", "Invocations", 1, COUNT)
        recorder.flush()
        stream.write("end")
    assert os.read(master, 1000) == b"end"
    os.close(master)
