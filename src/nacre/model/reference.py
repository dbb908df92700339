"""Image references: ``[registry/]repository[:tag][@digest]``, read by the rules of Docker.

The grammar is that of the distribution project (``distribution/reference``), the normalisation that of the Docker command
line: a first component counts as a registry when it has a dot, a colon or a capital letter, or is ``localhost``; without a
registry the image is Docker Hub's, and without a namespace it is one of Docker Hub's official images.
"""

from __future__ import annotations

from nacre.errors import InvalidArgument
from nacre.model.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

DOCKER_HUB = "docker.io"
DEFAULT_TAG = "latest"

_HUB_ALIASES = ("index.docker.io",)
_OFFICIAL = "library"
_MAX_REPOSITORY = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_WORD = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz")
_TAG = _WORD | frozenset(".-")
_MAX_TAG = 128
_HEX = frozenset("0123456789abcdef")
_DIGEST_HEX = {"sha256": 64, "sha384": 96, "sha512": 128}


class Reference(Value):
    """A normalised reference.

    registry:   host with optional port (``docker.io``, ``localhost:5000``, ``[::1]:5000``).
    repository: path within the registry (``library/ubuntu``).
    tag:        "" when the text had none; digest: ``sha256:<hex>`` or "".
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference as a user writes it. No tag is added: see `tagged`.

        Raises InvalidArgument in Docker's words, for instance "invalid reference format: repository name (library/Ubuntu)
        must be lowercase".
        """
        if len(text) == 64 and _HEX.issuperset(text):
            raise InvalidArgument(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
        registry, rest = split_registry(text)
        rest, at, digest = rest.partition("@")
        repository, colon, tag = rest.partition(":")
        if registry in ("", *_HUB_ALIASES):
            registry = DOCKER_HUB
        if registry == DOCKER_HUB and repository and "/" not in repository:
            repository = f"{_OFFICIAL}/{repository}"
        _check_repository(text, registry, repository)
        if colon and not (0 < len(tag) <= _MAX_TAG and tag[0] in _WORD and _TAG.issuperset(tag)):
            raise _malformed(text, "a tag is up to 128 letters, digits, '_', '.' and '-', and does not start with '.' or '-'")
        if at:
            check_digest(digest)
        return cls(registry=registry, repository=repository, tag=tag, digest=digest)

    @property
    def name(self) -> str:
        """Registry and repository: ``docker.io/library/ubuntu``."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar_name(self) -> str:
        """The name as Docker prints it: ``ubuntu``, ``nginx/unit``, ``quay.io/podman/hello``."""
        if self.registry != DOCKER_HUB:
            return self.name
        head, _, rest = self.repository.partition("/")
        return rest if head == _OFFICIAL and rest and "/" not in rest else self.repository

    def familiar(self) -> str:
        """The whole reference as Docker prints it: ``ubuntu:latest``."""
        return self.familiar_name + self._suffix()

    def tagged(self) -> Self:
        """This reference, with the tag ``latest`` when it has neither a tag nor a digest."""
        return self if self.tag or self.digest else self.replace(tag=DEFAULT_TAG)

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def split_registry(text: str) -> tuple[str, str]:
    """(registry, rest) of a reference as written; the registry is "" for a short name such as ``ubuntu`` or ``nginx/unit``."""
    first, slash, rest = text.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        return first, rest
    return "", text


def check_digest(text: str) -> tuple[str, str]:
    """(algorithm, hexadecimal digits) of a digest. Raises InvalidArgument when it is malformed or of an unknown algorithm."""
    algorithm, colon, digits = text.partition(":")
    if not colon or (algorithm not in _DIGEST_HEX and not _matches(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*", algorithm)):
        raise InvalidArgument(
            f"invalid reference format: {text!r} is not a digest", hint="a digest looks like sha256:<64 hexadecimal digits>"
        )
    length = _DIGEST_HEX.get(algorithm)
    if length is None:
        raise InvalidArgument(f"unsupported digest algorithm: {algorithm}", hint=f"supported are {', '.join(_DIGEST_HEX)}")
    if len(digits) != length:
        raise InvalidArgument(f"invalid checksum digest length: {algorithm} has {length} digits, {text[:80]!r} has {len(digits)}")
    if not _HEX.issuperset(digits):
        raise InvalidArgument(f"invalid checksum digest format: {text!r}", hint="the digits are 0-9 and a-f, lower case")
    return algorithm, digits


def is_digest(text: str) -> bool:
    """Whether `check_digest` accepts the text."""
    try:
        check_digest(text)
    except InvalidArgument:
        return False
    return True


def _check_repository(text: str, registry: str, repository: str) -> None:
    if not repository:
        raise InvalidArgument("invalid reference format: repository name must have at least one component", hint=f"{text!r} names no image")
    if registry != DOCKER_HUB and not _matches(_REGISTRY, registry):
        raise _malformed(text, f"{registry!r} is not a host name, an address in brackets or either with :port")
    if repository.lower() != repository:
        small = Reference(registry=registry, repository=repository.lower()).familiar_name
        raise InvalidArgument(f"invalid reference format: repository name ({repository}) must be lowercase", hint=f"try {small}")
    # Most names need no pattern: see `_matches`.
    plain = repository.isascii() and all(component.isalnum() for component in repository.split("/"))
    if not plain and not _matches(rf"{_COMPONENT}(?:/{_COMPONENT})*", repository):
        raise _malformed(text, "a name is lower-case letters and digits, joined by single '.', one or two '_', '-' and '/'")
    if len(repository) > _MAX_REPOSITORY:
        raise InvalidArgument(f"repository name must not be more than {_MAX_REPOSITORY} characters", hint=f"this one has {len(repository)}")


def _matches(pattern: str, text: str) -> bool:
    import re  # here, because that takes 1 ms and compiling a pattern half a one, which every `run` would pay

    return re.fullmatch(pattern, text) is not None


def _malformed(text: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"invalid reference format: {text[:300]!r}", hint=why)
