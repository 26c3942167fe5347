"""One fault test: a data plane, an image, a model, workers that meet faults, and the books at the end."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aws.osml.model_runner.local.stack.model_server import ModelServer
from faults.books import TERMINAL, Books, check_jobs
from faults.forkserver import FaultyWorker, Fleet
from faults.numbered_scene import REGION_PX, TILE_PX
from worker_process import Site, eventually

LEASE_S = 2
SETTINGS = {
    "REGION_SIZE": f"({REGION_PX}, {REGION_PX})",
    "REGION_LEASE_S": str(LEASE_S),
    "AGGREGATION_LEASE_S": str(LEASE_S),
    "SWEEP_INTERVAL_S": "0.5",
    "QUEUE_WAIT_S": "1",
    "LOG_LEVEL": "INFO",
}
_KILLED = -9


@dataclass
class Trial:
    """``tally`` counts what happened, for the table at the end of a long run."""

    site: Site
    fleet: Fleet
    images: Mapping[str, Path]
    new_model: Callable[..., ModelServer]
    tally: Counter[str]
    jobs: dict[str, str | None] = field(default_factory=dict)
    models: list[ModelServer] = field(default_factory=list)
    test_kills: int = 0

    def model(self, **settings: Any) -> ModelServer:
        """Start a ``NumberedModel``."""
        server = self.new_model(**settings)
        self.models.append(server)
        return server

    def request(self, model: ModelServer | str, image: str = "small", **changes: Any) -> dict[str, Any]:
        """Return a request for a job with S3 and Kinesis outputs; ``image`` is one of the scenes, or a path."""
        url = model if isinstance(model, str) else model.invocations_url
        return self.site.request(
            str(self.images.get(image, image)),
            url,
            **{
                "imageProcessorTileSize": TILE_PX,
                "imageProcessorTileOverlap": 0,
                "jobId": f"job-{uuid.uuid4().hex[:8]}",
                "postProcessing": [{"step": "FEATURE_DISTILLATION", "algorithm": {"algorithmType": "NONE"}}],
                **changes,
            },
        )

    def sagemaker_request(self, endpoint: str, image: str = "small", **changes: Any) -> dict[str, Any]:
        """Return a request for a job whose model is an endpoint of the gateway."""
        processor = {"name": endpoint, "type": "SM_ENDPOINT"}
        return self.request(endpoint, image, imageProcessor=processor, **changes)

    def submit(self, request: Mapping[str, Any], ends: str | None = "SUCCESS") -> str:
        """Submit a job that has to end as ``ends`` (None: however), and return its id."""
        self.jobs[request["jobId"]] = ends
        self.site.submit(request)
        return str(request["jobId"])

    def running(self, *job_ids: str) -> list[str]:
        """Return the jobs, of these or of all, whose terminal status has not been received."""
        return [job for job in job_ids or self.jobs if not TERMINAL.intersection(self.site.told(job))]

    def wait(self, *job_ids: str, patience_s: float = 60.0) -> None:
        """Wait until the terminal status of each job, or of all, is out."""
        deadline = time.monotonic() + patience_s
        while waiting := self.running(*job_ids):
            assert time.monotonic() < deadline, f"no end of {sorted(waiting)} after {patience_s} s"
            self.site.listen(wait_s=1)

    def check(self, **options: Any) -> Books:
        """Hold every job against the protocol, and count."""
        books = check_jobs(self.site, self.jobs, self.fleet.writes("F0", "G3"), **options)
        self._count(books)
        assert books.violations == []
        return books

    def tiles_done(self) -> int:
        """Return how many tiles have a row."""
        return sum("tile_status" in row for row in self.site.rows("FEATURE_TABLE"))

    def kill(self, worker: FaultyWorker) -> None:
        self.test_kills += 1
        worker.kill()

    def calls_per_tile(self, books: Books) -> float:
        """Return the model calls for each tile of all jobs."""
        return sum(model.stats()["requests"] for model in self.models) / max(1, sum(map(len, books.tiles.values())))

    def _count(self, books: Books) -> None:
        did = Counter(event["fault"] for event in self.fleet.faults())
        self.tally.update(
            {
                "jobs": len(self.jobs),
                "tiles": sum(map(len, books.tiles.values())),
                "model calls": sum(model.stats()["requests"] for model in self.models),
                "kills": self.test_kills + did["die_before"] + did["die_after"] + did["segfault"],
                "pauses": did["stop_before"] + did["stop_after"],
                "duplicates": 2 * did["repeat"],
                "lost replies": did["lose"],
                "refusals": did["refuse"] + did["partly"],
                "violations": len(books.violations),
            }
        )

    def wait_for_fault(self, count: int = 1, on: str | None = None, patience_s: float = 60.0) -> None:
        """Wait until workers have met so many faults."""
        eventually(lambda: len(self.fleet.faults(on)) >= count, patience_s)
