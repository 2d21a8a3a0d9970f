"""The first contact with all servers at once: who answers begins, who does not is taken in when it comes."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ctseg.errors import ModelNotFoundError, ServerTimeoutError, ServerUnavailableError
from ctseg.triton.addresses import Address
from ctseg.triton.server import Server

log = logging.getLogger(__name__)

_SILENCE_S = 5.0
_PAUSE_S = 2.0
_NOT_THERE = (ServerUnavailableError, ServerTimeoutError)


T = TypeVar("T", bound=Server[Any])


@dataclass
class _Contact(Generic[T]):
    """What is known of one address."""

    address: Address
    server: T | None = None
    error: Exception | None = None
    is_waited_for: bool = False
    is_taken: bool = False


class Arrivals(Generic[T]):
    """Connects to several servers, each on a thread of its own.

    Args:
        addresses: Where they are.
        connect: Connects to one; its second argument is called when it does not answer at once.
        timeout_s: How long one is waited for at most that others do not wait for, in seconds.
    """

    def __init__(
        self, addresses: Sequence[Address], connect: Callable[[Address, Callable[[], None]], T], timeout_s: float
    ) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._contacts: list[_Contact[T]] = [_Contact(address) for address in addresses]
        self._changed = threading.Condition()
        self._is_closed = False
        self._take_in: Callable[[T], None] | None = None
        for contact in self._contacts:
            name = f"connect-{contact.address}"
            threading.Thread(target=self._meet, args=(contact,), name=name, daemon=True).start()

    @property
    def urls(self) -> tuple[str, ...]:
        """All addresses, in the order given."""
        return tuple(contact.address.target for contact in self._contacts)

    def first(self) -> list[T]:
        """Wait until a server answers; return those that do, in the order given.

        One that is there but slow is waited for a little; one that refuses is not.

        Raises:
            CtsegError: No server answers in time, or one of them says what no waiting mends.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._servers() or self._certain() or self._are(lambda c: c.error))
            if self._servers():
                silence_s = min(_SILENCE_S, self._timeout_s)
                self._changed.wait_for(
                    lambda: self._certain() or self._are(lambda c: c.server or c.error or c.is_waited_for), silence_s
                )
            if certain := self._certain():
                raise certain[0]
            if not (servers := self._servers()):
                raise next(contact.error for contact in self._contacts if contact.error is not None)
            for contact in self._contacts:
                contact.is_taken = contact.server is not None
                if not contact.is_taken:
                    log.warning("%s does not answer yet: the work begins without it", contact.address)
            return servers

    def take_in_later(self, take_in: Callable[[T], None]) -> None:
        """Hand over those that come later; called on other threads."""
        with self._changed:
            self._take_in = take_in
            late = [contact.server for contact in self._contacts if contact.server and not contact.is_taken]
        for server in late:
            take_in(server)

    def close(self) -> None:
        """Wait for nobody any more, and close connections that nobody has taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            left = [contact.server for contact in self._contacts if contact.server and not contact.is_taken]
            for contact in self._contacts:
                contact.is_taken = True
        for server in left:
            server.close()

    def _servers(self) -> list[T]:
        return [contact.server for contact in self._contacts if contact.server is not None]

    def _certain(self) -> list[Exception]:
        """Return what went wrong and will not be mended by waiting."""
        errors = [contact.error for contact in self._contacts]
        return [error for error in errors if error is not None and not isinstance(error, _NOT_THERE)]

    def _are(self, condition: Callable[[_Contact[T]], object]) -> bool:
        return all(condition(contact) for contact in self._contacts)

    # --- one server, on its own thread

    def _meet(self, contact: _Contact[T]) -> None:
        """Connect to a server; while others work, again and again."""
        while not self._is_closed:
            try:
                server = self._connect(contact.address, lambda: self._note(contact, waits=True))
            except Exception as error:
                self._note(contact, error=error)
                if not self._goes_on(contact, error):
                    return
            else:
                self._arrived(contact, server)
                return

    def _note(self, contact: _Contact[T], *, error: Exception | None = None, waits: bool = False) -> None:
        with self._changed:
            contact.error = error
            contact.is_waited_for |= waits
            self._changed.notify_all()

    def _goes_on(self, contact: _Contact[T], error: Exception) -> bool:
        """Whether to try again, after a pause."""
        if not isinstance(error, (*_NOT_THERE, ModelNotFoundError)):
            if self._take_in is not None:
                log.warning("%s is not used: %s", contact.address, error)
            return False
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed, _PAUSE_S)
            return not self._is_closed

    def _arrived(self, contact: _Contact[T], server: T) -> None:
        with self._changed:
            is_late = self._is_closed
            contact.server, contact.error = server, None
            take_in = self._take_in
            contact.is_taken = is_late or take_in is not None
            self._changed.notify_all()
        if is_late:
            server.close()
        elif take_in is not None:
            take_in(server)
