"""AWS behind TLS: the emulator and an endpoint of SageMaker, with a certificate that only the worker trusts."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
ENDPOINT = "measured"


@contextmanager
def secured(directory: Path, emulator_url: str, model_url: str) -> Iterator[dict[str, str]]:
    """Yield the variables that have a worker call AWS by TLS, and ``ENDPOINT`` of SageMaker in place of the model."""
    certificate, key = _certificate(directory)
    with ExitStack() as running:
        gateway = running.enter_context(_process("sagemaker.py", ENDPOINT, f"{model_url}/invocations"))
        emulator = str(urlsplit(emulator_url).port)
        ports = [
            running.enter_context(_process("tls_terminator.py", certificate, key, port)) for port in (emulator, gateway)
        ]
        aws, sagemaker = (f"https://127.0.0.1:{port}" for port in ports)
        yield {
            "AWS_CA_BUNDLE": certificate,
            "CURL_CA_BUNDLE": certificate,
            "AWS_ENDPOINT_URL": aws,
            "AWS_ENDPOINT_URL_SAGEMAKER": sagemaker,
            "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": sagemaker,
            "AWS_S3_ENDPOINT": aws.removeprefix("https://"),
            "AWS_HTTPS": "YES",
        }


def _certificate(directory: Path) -> tuple[str, str]:
    certificate, key = directory / "loopback.pem", directory / "loopback.key"
    if not certificate.exists():
        name = ["-subj", "/CN=loopback", "-addext", "subjectAltName=IP:127.0.0.1"]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *name]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return str(certificate), str(key)


@contextmanager
def _process(script: str, *arguments: str) -> Iterator[str]:
    """Run a script for the length of a ``with`` block, and yield the port that it prints."""
    with subprocess.Popen(
        [sys.executable, str(HERE / script), *arguments], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()
