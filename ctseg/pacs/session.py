"""One PACS over HTTP: requests that are bounded, tried again while it is away, and whose failures have names.

Source:
    DICOM PS3.18 (Web Services), 2024e.
"""

import json
import logging
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import requests
import tenacity
import urllib3

from ctseg.errors import PacsAwayError, PacsError, SetupError
from ctseg.pacs.options import PacsOptions

log = logging.getLogger(__name__)

JSON = "application/dicom+json"
_CHUNK_BYTES = 1 << 18
_MOST_JSON_BYTES = 64 << 20
_LONGEST_ANSWER_S = 3600.0
"""Of one answer, however slowly its bytes come."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 10.0
_AWAY = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSED = {
    400: "the request is not understood",
    401: "credentials are needed, or wrong",
    403: "this user may not do that",
    404: "it is not there",
    405: "the address takes no such request",
    406: "no answer in such a form",
    409: "it was not stored",
    410: "it is no longer there",
    413: "it is too large",
    415: "no request in such a form",
    501: "it cannot do that",
}

Answer = TypeVar("Answer")


class PacsRefusedError(PacsError):
    """A PACS answered with a status that says no.

    Args:
        message: Which PACS, what was asked, what it said.
        status: Of the answer.
        content: Of the answer, as far as it is short.
    """

    def __init__(self, message: str, status: int, content: bytes = b"", *, settings: tuple[str, ...] = ()) -> None:
        super().__init__(message, settings=settings)
        self.status = status
        self.content = content


class PacsTroubledError(PacsAwayError):
    """A PACS answers, and fails: it may be this very request (HTTP 500, an answer that is cut off)."""


class PacsSession:
    """Asks one PACS. No UID and no credential stands in a message.

    Args:
        options: How to talk to it.
    """

    def __init__(self, options: PacsOptions) -> None:
        self.options = options
        options.credentials.read()
        self._session = requests.Session()
        self._session.auth = self._authorize
        if options.credentials.given and options.url.startswith("http://"):
            log.warning("%s: credentials travel unencrypted: use https", options.shown)

    def json(self, what: str, path: str, query: Mapping[str, Any]) -> Any:
        """Return the content of an answer in JSON; None: nothing is there.

        Args:
            what: Is asked, for messages.
            path: Below the root.
            query: Parameters.

        Raises:
            PacsError: See :meth:`answer`; or the answer is no JSON.
        """

        def read(response: requests.Response) -> Any:
            if response.status_code == 204:
                return None
            content = b"".join(self.chunks(response, what, most_bytes=_MOST_JSON_BYTES))
            return _parsed(content, f"{self.options.shown}: {what}") if content.strip() else None

        return self.answer(what, "GET", path, read, headers={"Accept": JSON}, params=query)

    def answer(
        self, what: str, method: str, path: str, read: Callable[[requests.Response], Answer], **request: Any
    ) -> Answer:
        """Send a request, and read its answer; again while the PACS is away.

        Args:
            what: Is asked, for messages.
            method: Of HTTP.
            path: Below the root.
            read: Reads an answer that says yes; what it began is undone by itself where it raises.
            request: As requests takes it; ``data`` is a function that returns it, for each try.

        Raises:
            PacsAwayError: The PACS was away for longer than it is waited for.
            PacsRefusedError: It says no.
            PacsError: The answer cannot be used.
            SetupError: The certificate of the PACS is not trusted, or the credentials cannot be read.
        """
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(PacsAwayError),
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            stop=tenacity.stop_after_delay(self.options.patience_s),
            before_sleep=_tell,
            reraise=True,
        )
        answer: Answer = attempts(self._once, what, method, path, read, **request)
        return answer

    def chunks(self, response: requests.Response, what: str, *, most_bytes: int) -> Iterator[bytes]:
        """Yield the content of an answer.

        Raises:
            PacsError: It is larger than ``most_bytes``.
            PacsTroubledError: It comes too slowly.
        """
        left, give_up_at = most_bytes, time.monotonic() + _LONGEST_ANSWER_S
        for chunk in response.iter_content(_CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                name = f"{self.options.shown}: {what}"
                raise PacsError(f"{name}: the answer has more than {most_bytes} bytes, the most that is taken")
            if time.monotonic() > give_up_at:
                raise PacsTroubledError(f"{self.options.shown}: {what}: no end after {_LONGEST_ANSWER_S:.0f} s")
            yield chunk

    def close(self) -> None:
        """Close connections."""
        self._session.close()

    def _once(
        self,
        what: str,
        method: str,
        path: str,
        read: Callable[[requests.Response], Answer],
        data: Callable[[], Any] | None = None,
        **request: Any,
    ) -> Answer:
        options = self.options
        with self._translated(what):
            response = self._session.request(
                method,
                f"{options.root}{path}",
                data=None if data is None else data(),
                timeout=options.timeout_s,
                stream=True,
                allow_redirects=False,  # a POST would become a GET, and credentials would go where nobody looked
                # here, for a variable of the environment wins over a session's own
                verify=True if options.ca_certificates is None else str(options.ca_certificates),
                cert=None
                if options.client_certificate is None
                else (str(options.client_certificate), str(options.client_key)),
                **request,
            )
            with response:
                self._check(response, what)
                return read(response)

    def _check(self, response: requests.Response, what: str) -> None:
        status, name = response.status_code, f"{self.options.shown}: {what}"
        if status in _AWAY:
            kind = PacsTroubledError if status == 500 else PacsAwayError
            raise kind(f"{name}: HTTP {status}")
        if 300 <= status < 400:
            raise PacsRefusedError(
                f"{name}: HTTP {status}: the PACS is at another address: name that one", status, settings=("dicomweb",)
            )
        if status >= 400:
            why = _REFUSED.get(status, "")
            settings = ("credentials", "credentials_env") if status in (401, 403) else ()
            content = b"".join(self.chunks(response, what, most_bytes=_MOST_JSON_BYTES))
            raise PacsRefusedError(
                f"{name}: HTTP {status}{': ' if why else ''}{why}", status, content, settings=settings
            )

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Let what requests raises be ctseg's; its texts quote addresses, and with them UIDs."""
        name = f"{self.options.shown}: {what}"
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise SetupError(
                f"{self.options.shown}: no encrypted connection: {_why(error)}",
                settings=("ca_certificates", "pacs_client_certificate"),
            ) from error
        except (requests.exceptions.InvalidProxyURL, requests.exceptions.InvalidURL) as error:
            raise SetupError(f"{name}: the address, or that of a proxy, cannot be used") from error
        except requests.exceptions.Timeout as error:
            raise PacsAwayError(f"{name}: no answer within {self.options.timeout_s:g} s") from error
        except requests.exceptions.RequestException as error:
            raise PacsAwayError(f"{name}: {_why(error)}") from error
        except urllib3.exceptions.HTTPError as error:
            raise PacsAwayError(f"{name}: {_why(error)}") from error

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Give a request its credentials; without any it gets none, not those of ``~/.netrc`` either."""
        found = self.options.credentials.read()
        if isinstance(found, tuple):
            user, password = (text.encode() for text in found)
            requests.auth.HTTPBasicAuth(user, password)(request)
        elif found is not None:
            request.headers["Authorization"] = f"Bearer {found}"
        return request


def _tell(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if state.attempt_number == 1:
        log.info("%s: tried again", error)


def _parsed(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PacsError(f"{name}: the answer is no JSON") from error


def _why(error: BaseException) -> str:
    """Return the reason at the bottom of an exception, without its text: that quotes addresses."""
    seen: BaseException | None = error
    for _ in range(12):
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"the certificate is not trusted ({seen.verify_message})"
        if isinstance(seen, ssl.SSLError):
            return str(seen.reason or "TLS failed")
        if isinstance(seen, OSError) and seen.errno is not None and seen.strerror:
            return seen.strerror
        below = seen.__cause__ or seen.__context__ if seen is not None else None
        inner = next((item for item in getattr(seen, "args", ()) if isinstance(item, BaseException)), None)
        reason = getattr(inner, "reason", None) if inner is not None else None
        seen = reason if isinstance(reason, BaseException) else inner or below
        if seen is None:
            break
    return f"the connection failed ({type(error).__name__})"
