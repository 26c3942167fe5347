"""Quotes a job, in tiles, calls, bytes and rows: plans its images as a worker does, and collects all problems."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.image_url import public_url
from aws.osml.model_runner.aws.errors import error_code
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.exceptions import InvalidRequestError, ModelRunnerError
from aws.osml.model_runner.inference.endpoint_check import Finding
from aws.osml.model_runner.raster import ImageSource
from aws.osml.model_runner.tiling.strategy import TilingStrategy

from .image_roi import LendImage, ReadArea, with_area
from .planning import ImagePlan, PlanLimits, plan_image, preparation_of
from .preflight import Preflight
from .prices import Prices
from .quote import ImageQuote, PlanDocument, QuotedProblem, Unchecked, quote_image, total_of
from .skipping import TileSkipping

_ENDPOINT = "imageProcessor.name"
_REASONS = {
    "NoCredentialsError": "there are no AWS credentials here",
    "NoRegionError": "AWS_DEFAULT_REGION is not set",
}

OnPlanned = Callable[[ImageSource, ImageRequest, ImagePlan], object]


class JobQuoter:
    """Quotes requests with the settings of ``config``, as a worker with these settings would plan them.

    ``left_out`` are fields, as ``outputs``, that were not given, each with the reason; they are not checked.
    """

    def __init__(
        self,
        config: ServiceConfig,
        strategy: TilingStrategy,
        lend_image: LendImage,
        skipping: TileSkipping,
        preflight: Preflight,
        read_area: ReadArea,
        left_out: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._config = config
        self._strategy = strategy
        self._lend_image = lend_image
        self._skipping = skipping
        self._preflight = preflight
        self._read_area = read_area
        self._left_out = left_out

    def quote(
        self,
        requests: Sequence[ImageRequest],
        calls_per_second: float | None = None,
        prices: Prices | None = None,
        on_planned: OnPlanned = lambda _source, _request, _plan: None,
    ) -> PlanDocument:
        """Return the quote of a job; ``on_planned`` is called with each image that could be planned."""
        problems, images = dict[QuotedProblem, None](), list[ImageQuote]()
        unchecked = dict.fromkeys(Unchecked(field=field, reason=reason) for field, reason in self._left_out.items())
        for request in requests:
            findings = {} if (refused := self._policy_problems(request)) else self._findings(request)
            problems |= dict.fromkeys(refused)
            for field, finding in findings.items():
                problems |= dict.fromkeys(map(QuotedProblem.of, finding.problems))
                if finding.absent is not None:
                    problems[QuotedProblem.of(finding.absent)] = None
                if not finding.is_known:
                    known = (text for name, text in _REASONS.items() if name in finding.reason)
                    reason = next(known, finding.reason)
                    unchecked[Unchecked(field=field, reason=reason)] = None
            quote, reasons = ImageQuote(url=public_url(request.image_url)), list[QuotedProblem]()
            if not refused:
                quote, reasons = self._quote(request, findings, calls_per_second, on_planned)
            images.append(quote)
            problems |= dict.fromkeys(reasons)
        amounts = [image.amounts for image in images if image.amounts is not None]
        totals = total_of(amounts) if len(amounts) == len(images) else None
        return PlanDocument(
            job_id=requests[0].job_id,
            images=images,
            totals=totals,
            cost=prices.cost_of(totals) if prices is not None and totals is not None else None,
            problems=list(problems),
            unchecked=list(unchecked),
        )

    def _policy_problems(self, request: ImageRequest) -> list[QuotedProblem]:
        try:
            self._config.policy.check(request)
        except InvalidRequestError as err:
            return list(map(QuotedProblem.of, err.problems))
        return []

    def _findings(self, request: ImageRequest) -> dict[str, Finding]:
        findings = self._preflight.findings(request)
        return {field: finding for field, finding in findings.items() if not field.startswith(tuple(self._left_out))}

    def _quote(
        self,
        request: ImageRequest,
        findings: dict[str, Finding],
        calls_per_second: float | None,
        on_planned: OnPlanned,
    ) -> tuple[ImageQuote, list[QuotedProblem]]:
        endpoint = findings.get(_ENDPOINT)
        body_bytes = self._preflight.max_body_bytes(request) if endpoint is not None and endpoint.is_good else None
        problems = list[QuotedProblem]()
        try:
            request, _ = with_area(request, self._read_area)
            with self._lend_image(request) as source:
                preparation = preparation_of(source, request, None, measures=True)

                def planned(limit: int | None) -> ImagePlan:
                    config = self._config
                    counts = config.max_regions, config.max_tiles_per_region, config.max_tiles_per_image
                    limits = PlanLimits(*counts, limit)
                    return plan_image(source, request, self._strategy, config.region_size, limits, preparation)

                try:
                    plan = planned(body_bytes)
                except InvalidRequestError as err:
                    # A tile that no call takes stops the job; its amounts are of use all the same.
                    problems += problems_of(err)
                    plan = planned(None)
                skipped = self._skipping.skipped(
                    source, request, plan.planner, plan.regions, preparation, note=lambda: None
                )
                plan = replace(plan, skipped=skipped)
                on_planned(source, request, plan)
                return quote_image(source, request, plan, body_bytes, calls_per_second), problems
        except (ModelRunnerError, ClientError, BotoCoreError) as err:
            problems += [problem for problem in problems_of(err) if problem not in problems]
        return ImageQuote(url=public_url(request.image_url)), problems


def problems_of(err: Exception) -> Iterator[QuotedProblem]:
    """Yield each problem of an error; the error itself where it lists none."""
    problems = err.problems if isinstance(err, InvalidRequestError) else ()
    yield from map(QuotedProblem.of, problems)
    if not problems:
        reason = error_code(err) if isinstance(err, ClientError | BotoCoreError) else str(err)
        yield QuotedProblem(field=None, value=None, reason=reason)
