"""What the Hub and its library answer, in one sentence that names the way out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from parity.errors import DownloadError
from parity.files.hub_address import Address


class UnreachableError(Exception):
    """The Hub could not be asked; what is in the cache may do."""


@contextmanager
def explained(address: Address) -> Iterator[None]:
    """Says in a sentence what the Hub's library found.

    Raises:
        DownloadError: the Hub answered, and it is no.
        UnreachableError: it did not.
    """
    from huggingface_hub import errors

    try:
        yield
    except DownloadError:
        raise
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/{address.repository}"
        raise refused(
            address, "is gated", f"Ask for access at {page}, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise refused(
            address,
            f"there is no repository {address.repository}, or it is private",
            "Check the name, or log in with `hf auth login`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise refused(
            address,
            f"{address.repository} has no revision {address.revision!r}",
            "Check the name of the branch, tag or commit",
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise refused(
            address, "there is no such file", "Check its name and the revision"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise UnreachableError(
            "is not in the cache, and HF_HUB_OFFLINE is set. Fetch it once without"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        reason = _line(error.__cause__ or error)
        raise UnreachableError(
            f"is not in the cache, and the Hub cannot be asked ({reason}). Check the "
            "network"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status in (408, 429):
            raise UnreachableError(
                f"the Hub answered {status}. Try again later"
            ) from error
        advice = "Check the name"
        if status in (401, 403):
            advice = "Log in with `hf auth login`, with a token that may read it"
        raise refused(address, f"the Hub answered {status}", advice) from error
    except errors.HFValidationError as error:
        raise refused(address, "is no name on the Hub", "Check it") from error
    except OSError as error:  # its own, too, about a file that came incomplete
        if error.filename is None and error.errno is None:
            raise UnreachableError(_cut(error)) from error
        raise refused(
            address,
            f"cannot be stored ({error.strerror or error})",
            "Check the space and permissions of the cache, or set HF_HOME",
        ) from error
    except Exception as error:
        # Of the library below it, which is one in some versions and another in others.
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise UnreachableError(_cut(error)) from error


def refused(address: Address, problem: str, advice: str) -> DownloadError:
    """Says what is wrong with what was asked for, and what to do."""
    return DownloadError(f"{address}: {problem}. {advice}")


def _cut(error: Exception) -> str:
    return f"did not come ({_line(error)}). Check the network, and call again"


def _line(error: BaseException) -> str:
    lines = _without_secrets(str(error)).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _without_secrets(text: str) -> str:
    """Leaves out names and passwords of addresses; the Hub's own may stand alone."""
    address = os.environ.get("HF_ENDPOINT", "")
    secret, at, _ = address.rpartition("//")[2].rpartition("@")
    if at:
        for one in (secret, unquote(secret)):
            for part in (f"{one}@", one, one.partition(":")[2]):
                if len(part) > 3:  # else it is found in any word
                    text = text.replace(part, "")
    return re.sub(r"(?<=://)[^/\s]*@", "", text)
