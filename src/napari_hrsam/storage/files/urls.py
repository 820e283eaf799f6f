"""Which sources are URLs, and how they are named in messages."""

from __future__ import annotations


def is_url(source: str) -> bool:
    """Whether a source is a URL and not a local path."""
    return "://" in source


def shown_url(source: str) -> str:
    """Return a path or URL as it may be shown: a URL without what only its owner may know.

    Signed links have their token in the query, others a password before the host. A ``file``
    URL is shown as the path that it is.
    """
    if not is_url(source) or source.startswith("file://"):
        return source.removeprefix("file://")
    scheme, _, rest = source.partition("://")
    place = rest.partition("?")[0].partition("#")[0]
    host, slash, path = place.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
