"""Limits that the operator sets on requests: image sources, buckets, streams and roles."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from aws.osml.model_runner.exceptions import InvalidImageRequestException, InvalidImageURLException, Problem

from .image_request import ImageRequest
from .image_url import ALL_SOURCES, is_among, parse_image_url
from .problems import shortened

# https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html: paths of 512 characters, names of 64
_ROLE_ARN = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/([\x21-\x7e]{0,510}/)?[A-Za-z0-9_+=,.@-]{1,64}", re.ASCII)
# Keys of an output's role: each type of output has its own, and both are accepted.
_ROLE_KEYS = ("role", "assumedRole")


@dataclass(frozen=True)
class RequestPolicy:
    """Allowed names, in which ``*`` matches any characters. An empty list allows all names. Roles are ARNs."""

    image_sources: Collection[str] = ALL_SOURCES
    image_buckets: Sequence[str] = ()
    output_buckets: Sequence[str] = ()
    output_streams: Sequence[str] = ()
    roles: Sequence[str] = ()
    allows_requester_pays: bool = False

    def check(self, request: ImageRequest) -> None:
        """Raise InvalidImageRequestException with a problem for each name in the request that is not allowed."""
        problems = list(self._url_problems("imageUrls", request.image_url))
        for index, rule in enumerate(request.skip or ()):
            if "url" in rule:
                problems += self._url_problems(f"skip[{index}].url", rule["url"])
        if request.requester_pays and not self.allows_requester_pays:
            problems.append(Problem("requesterPays", "true", "false, unless ALLOW_REQUESTER_PAYS is True"))
        for index, output in enumerate(request.outputs):
            for key, setting, patterns in (
                ("bucket", "OUTPUT_BUCKETS", self.output_buckets),
                ("stream", "OUTPUT_STREAMS", self.output_streams),
            ):
                if key in output and not is_among(output[key], patterns):
                    expectation = f"a {key} that {setting} allows"
                    problems.append(Problem(f"outputs[{index}].{key}", shortened(output[key]), expectation))
            for key in _ROLE_KEYS:
                problems += self._role_problems(f"outputs[{index}].{key}", output.get(key))
        problems += self._role_problems("imageReadRole", request.image_read_role)
        problems += self._role_problems("imageProcessor.assumedRole", request.model_invocation_role)
        if problems:
            raise InvalidImageRequestException("the image request is not allowed", problems)

    def _url_problems(self, field: str, url: str) -> Iterator[Problem]:
        try:
            parse_image_url(url, self.image_sources, self.image_buckets)
        except InvalidImageURLException as err:
            yield from (Problem(field, problem.value, problem.expectation) for problem in err.problems)

    def _role_problems(self, field: str, role: str | None) -> Iterator[Problem]:
        if not role:
            return
        if not _ROLE_ARN.fullmatch(role):
            yield Problem(field, shortened(role), "the ARN of a role, such as arn:aws:iam::123456789012:role/name")
        elif not is_among(role, self.roles):
            yield Problem(field, shortened(role), "a role that ASSUMABLE_ROLES allows")
