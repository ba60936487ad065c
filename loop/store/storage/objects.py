"""A run in an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.

Drivers have no lock here, and a check of the lease and the write that follows are two requests. So writes are conditional: on the state in
which this process saw the object before its check. A driver that was taken over after its check is refused by the store.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url

from loop.errors import StoreError, UserError, WriteError, one_line
from loop.store.storage.base import CHUNK_BYTES, Check, inside
from loop.store.storage.remote import RemoteStorage

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
_MAX_CONFLICTS = 4
_MAX_CONDITIONAL_BYTES = 1 << 30
"""Larger files are uploaded in several parts, which cannot be conditional; the check comes right before."""
_PROBE = "conditional-writes"
_CLIENT: Any = {"connect_timeout": "10s", "timeout": "600s"}
_RETRIES: Any = {"max_retries": 6}
_S3_QUERY = {"region", "endpoint_override", "scheme"}
"""Those of pyarrow's S3 URIs, which earlier versions read."""
_NODE = socket.gethostname()
_XML = re.compile(r"<\?xml.*<Code>(.*?)</Code>.*<Message>(.*?)</Message>.*</Error>")
_RIGHTS = "check that the bucket exists and that its region, endpoint and credentials are right, and the clock of this machine"


class ObjectStorage(RemoteStorage):
    """A run in an object store. Credentials and settings are taken from the environment, as `object_store` documents them
    (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`)."""

    @classmethod
    def at(cls, uri: str) -> ObjectStorage:
        """Raises `UserError`: the address is not valid."""
        try:
            _store(uri)
        except (BaseError, ValueError) as error:
            raise UserError(f"{uri} is not a valid run address: {one_line(error)}; give a URI such as s3://bucket/run") from error
        return cls(uri)

    def chunks(self, path: str) -> Iterator[bytes]:
        with self._asking(path):
            for chunk in obstore.get(self._objects, inside(path)).stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes:
        with self._asking(path):
            return bytes(obstore.get_range(self._objects, inside(path), start=start, length=num_bytes))

    def write(self, path: str, data: bytes, check: Check | None = None) -> None:
        self._put(path, data, check)

    def upload(self, source: Path, path: str, check: Check | None) -> None:
        if source.stat().st_size <= _MAX_CONDITIONAL_BYTES:
            self._put(path, source, check)
            return
        if check is not None:
            check()
        with self._writing(path):
            obstore.put(self._objects, inside(path), source, use_multipart=True)

    def _put(self, path: str, content: bytes | Path, check: Check | None) -> None:
        """Write an object, with `check` only if it is as it was before the check. First it is taken to be absent."""
        if check is None:
            with self._writing(path):
                obstore.put(self._objects, inside(path), content)
            return
        seen: _State | None = None
        for _ in range(_MAX_CONFLICTS):
            check()
            if self._put_if(path, content, seen):
                return
            seen = self._state(path)
        raise WriteError(f"{self.uri}/{path}", "another process keeps changing it", "stop that process and continue with `vigc resume`")

    def _put_if(self, path: str, content: bytes | Path, seen: _State | None) -> bool:
        """Write an object that is still in the state `seen` (None: absent); False if it is not."""
        mode: Any = "create" if seen is None else seen.version
        with self._writing(path):
            try:
                obstore.put(self._objects, inside(path), content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def size(self, path: str) -> int | None:
        state = self._state(path)
        return None if state is None else state.num_bytes

    def sizes(self, folder: str) -> dict[str, int]:
        with self._asking(folder):
            return {one["path"]: one["size"] for one in obstore.list(self._objects, inside(folder)).collect()}

    def names(self, folder: str) -> list[str]:
        with self._asking(folder):
            found = obstore.list_with_delimiter(self._objects, inside(folder))
        return sorted({PurePosixPath(path).name for path in [*found["common_prefixes"], *(one["path"] for one in found["objects"])]})

    def remove(self, path: str) -> None:
        """Object by object, not atomically: callers that delete files of a run write a tombstone first."""
        paths = [*self.sizes(path), *([path] if self.size(path) is not None else [])]
        if paths:
            with self._writing(path):
                obstore.delete(self._objects, paths)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Only sees to it that the store honours conditional writes.

        Raises:
            UserError: it ignores or refuses them.
        """
        try:
            honoured = not self._put_if(_PROBE, b"", None) or not self._put_if(_PROBE, b"", None)
        except WriteError as error:
            raise UserError(f"{self.uri} cannot be written: {error.reason}; {_RIGHTS}") from error
        if not honoured:
            raise UserError(
                f"{self.uri}: this object store ignores conditional writes (If-None-Match), without which two drivers could overwrite each "
                "other's rounds; use a newer server, or another place for the run folder"
            )
        yield

    @property
    def _objects(self) -> ObjectStore:
        return _store(self.uri)

    def _state(self, path: str) -> _State | None:
        try:
            with self._asking(path):
                found = obstore.head(self._objects, inside(path))
        except FileNotFoundError:
            return None
        version = {name: str(found[name]) for name in ("e_tag", "version") if found[name] is not None}
        return _State(found["size"], version)

    @contextmanager
    def _asking(self, path: str) -> Iterator[None]:
        try:
            yield
        except BaseError as error:
            raise StoreError(f"cannot read {self.uri}/{path} on {_NODE}; {_RIGHTS}: {_reason(error)}") from error

    @contextmanager
    def _writing(self, path: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise WriteError(f"{self.uri}/{path} on {_NODE}", _reason(error)) from error


def _reason(error: Exception) -> str:
    """The text of an error in one line, without the client's dump of itself, and of the store's XML only code and message."""
    text = one_line(error).partition(" Debug source:")[0]
    return _XML.sub(r"\1: \2", text)


@dataclass(frozen=True)
class _State:
    """An object as it was seen."""

    num_bytes: int
    version: dict[str, str]
    """Its `e_tag` and, where the store counts them, its `version`."""


@cache
def _store(uri: str) -> ObjectStore:
    """Made once per process: it holds connections. Raises `ValueError` and errors of obstore."""
    scheme, address, path, query, _ = urlsplit(uri)
    if scheme not in ("s3", "s3a"):
        plain = urlunsplit(("gs" if scheme == "gcs" else scheme, address, path, query, ""))
        return from_url(plain, client_options=_CLIENT, retry_config=_RETRIES)
    return _s3(address, path, dict(parse_qsl(query, strict_parsing=bool(query))))


def _s3(address: str, path: str, query: dict[str, str]) -> ObjectStore:
    if unknown := query.keys() - _S3_QUERY:
        raise ValueError(f"it has the parameters {sorted(unknown)}; expected some of {sorted(_S3_QUERY)}")
    user, _, bucket = address.rpartition("@")
    key, _, secret = user.partition(":")
    endpoint = query.get("endpoint_override", "")
    if endpoint and "://" not in endpoint:
        endpoint = f"{query.get('scheme', 'https')}://{endpoint}"
    in_use = endpoint or next(
        (os.environ[name] for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") if name in os.environ), ""
    )
    given = {
        "region": query.get("region", ""), "endpoint": endpoint, "access_key_id": unquote(key), "secret_access_key": unquote(secret),
    }  # fmt: skip
    settings: dict[str, Any] = {name: value for name, value in given.items() if value}
    if not key and "AWS_ACCESS_KEY_ID" not in os.environ and Path("~/.aws").expanduser().is_dir() and find_spec("boto3"):
        from obstore.auth.boto3 import Boto3CredentialProvider  # profiles, which obstore itself does not read

        settings["credential_provider"] = Boto3CredentialProvider()
    client: Any = {**_CLIENT, "allow_http": in_use.startswith("http://")}
    return from_url(f"s3://{bucket}{path}", client_options=client, retry_config=_RETRIES, **settings)
