"""From a URL to a file, over connections that stall and break."""

import re
import sys
import time
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from mmdscnet.version import __version__

# Seconds for which a server may be silent.
TIMEOUT = 30.0
TRIES = 4
# Seconds before the second try; twice as many before each further one.
BACKOFF = 1.0
CHUNK_BYTES = 1 << 18

NOT_THERE = (404, 410)
# Too early, too often, too slow: the request itself is well, as with all errors of a server.
WORTH_ANOTHER_TRY = (408, 425, 429)
RANGE_REFUSED = 416


class BrokenTransferError(Exception):
    """A failure on the way that another try may mend."""


def download(url: str, path: Path) -> None:
    """Bring a file, in several tries if need be, each of which goes on where the last one stopped.

    Where the server does not send parts, or the file has changed there meanwhile, a try begins
    anew. On a terminal a bar shows the progress. What was brought is not judged, except that it
    has the length that the server named.

    Args:
        url: Address, ``http://`` or ``https://``.
        path: File to write. What it holds is taken for the beginning. After an error it may hold
            a part, so lend a temporary name.

    Raises:
        ConnectionError: If the server refuses, or no try comes to the end.
        FileNotFoundError: If the server has no such file.
    """
    with _make_bar() as bar:
        transfer = _Transfer(url, path, bar)
        for attempt in range(TRIES):
            if attempt:
                time.sleep(BACKOFF * 2 ** (attempt - 1))
            try:
                return transfer.go_on()
            except BrokenTransferError as error:
                reason = error
    raise ConnectionError(
        f'{url} could not be downloaded, {TRIES} tries failed, the last one because: {reason}. '
        'Check the address and the network (a proxy is set by https_proxy), and try again later'
    ) from reason


class _Transfer:
    """The state of a download between two tries."""

    def __init__(self, url: str, path: Path, bar: Progress) -> None:
        self.url = url
        self.path = path
        self.bar = bar
        self.task = bar.add_task(url.rpartition('/')[2], total=None)
        # What the server calls this version of the file.
        self.version: str | None = None

    def go_on(self) -> None:
        """Bring what is missing."""
        here = self.path.stat().st_size if self.path.exists() else 0
        with self._request(here) as response:
            here, total = self._place(response, here)
            self.version = response.headers.get('ETag') or response.headers.get('Last-Modified')
            self.bar.update(self.task, completed=here, total=total)
            with self.path.open('ab') as file:
                file.truncate(here)
                while chunk := _receive(response):
                    file.write(chunk)
                    self.bar.advance(self.task, len(chunk))
                here = file.tell()
        if total is not None and here < total:
            raise BrokenTransferError(f'it ended after {here} of {total} bytes')

    def _request(self, here: int) -> HTTPResponse:
        headers = {'User-Agent': f'mmdscnet/{__version__}', 'Accept-Encoding': 'identity'}
        if here:
            headers['Range'] = f'bytes={here}-'
            # A weak name of a version does not promise the same bytes.
            if self.version is not None and not self.version.startswith('W/'):
                headers['If-Range'] = self.version
        try:
            response: HTTPResponse = urlopen(Request(self.url, headers=headers), timeout=TIMEOUT)
        except HTTPError as error:
            with error:
                self._explain(error)
                raise BrokenTransferError(f'HTTP {error.code}, {error.reason}') from error
        except (OSError, HTTPException) as error:
            raise BrokenTransferError(_describe(error)) from error
        return response

    def _explain(self, error: HTTPError) -> None:
        if error.code in NOT_THERE:
            raise FileNotFoundError(
                f'{self.url} is not there (HTTP {error.code}): check the address, or MMDSCNET_ZOO '
                'if it begins with that'
            ) from error
        if error.code == RANGE_REFUSED:
            self.path.unlink()
        elif error.code < 500 and error.code not in WORTH_ANOTHER_TRY:
            raise ConnectionError(
                f'{self.url} is refused (HTTP {error.code}, {error.reason}): download it in '
                'another way and give the file, or name another address'
            ) from error

    def _place(self, response: HTTPResponse, here: int) -> tuple[int, int | None]:
        """Say where the bytes of a response begin, and how many the whole file has."""
        if response.status != 206:
            length = response.headers.get('Content-Length')
            return 0, int(length) if length else None
        part = re.match(r'bytes (\d+)-\d*/(\d+|\*)', response.headers.get('Content-Range', ''))
        if part is None or int(part[1]) != here:
            self.path.unlink()
            raise BrokenTransferError('the server sent another part than the one asked for')
        return here, None if part[2] == '*' else int(part[2])


def _receive(response: HTTPResponse) -> bytes:
    try:
        # Not read(), which would wait for the whole chunk, and lose it when the connection breaks.
        return response.read1(CHUNK_BYTES)
    except (OSError, HTTPException) as error:
        raise BrokenTransferError(_describe(error)) from error


def _describe(error: Exception) -> str:
    reason = getattr(error, 'reason', error)
    if isinstance(reason, TimeoutError):
        return f'the server was silent for {TIMEOUT:g} s'
    return f'{type(reason).__name__} {reason}'.strip()


def _make_bar() -> Progress:
    shown = False
    # A program without a console has no standard error.
    with suppress(AttributeError):
        shown = sys.stderr.isatty()
    columns = ('{task.description}', BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)
