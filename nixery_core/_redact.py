"""Keep secrets out of everything that a person or a log may read."""

from __future__ import annotations

import re

# bounded repetitions: a text without end must not take quadratic time
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}://)[^/?#\s]*@")
_SECRET_PARAMETER = re.compile(
    r"(?P<name>[?&;][^=&\s]*(?:secret|token|password|passwd|signature|credential|key|sig|auth)[^=&\s]*=)[^&\s#]*",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return *text* with the userinfo of URLs and the values of secret-looking query parameters masked.

    >>> redact("cloning https://me:hunter2@example.org/repo?ref=main&token=abc")
    'cloning https://***@example.org/repo?ref=main&token=***'
    """
    masked = _USERINFO.sub(r"\g<scheme>***@", text)
    return _SECRET_PARAMETER.sub(r"\g<name>***", masked)
