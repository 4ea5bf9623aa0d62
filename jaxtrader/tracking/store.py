"""The MLflow store: which one, how it is reached, and how it is looked at."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from jaxtrader.errors import ConfigError, JaxtraderError, TrackingError
from jaxtrader.files import Lock

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"

# A server that does not answer costs seconds: by default MLflow tries for minutes.
PROCESS_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds
    # A request to make a run, repeated because only its answer was lost, would make two.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what goes wrong is told once, and without passwords
}

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

# Without it, MLflow's pages begin with traces of language models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def prepare_process() -> None:
    """Sets what MLflow reads from the environment of a process that only uploads.

    What the person has set stands. To be called before mlflow is imported.

    Raises:
      ConfigError: it is not installed.
    """
    if not mlflow_is_installed():
        raise ConfigError("mlflow is not installed: pip install -e '.[tracking]' in the checkout")
    for name, value in PROCESS_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def mlflow_is_installed() -> bool:
    """Found without importing it, which takes seconds."""
    return importlib.util.find_spec("mlflow") is not None


class Store:
    """One MLflow store.

    `client` is its `MlflowClient`, whose methods raise `TrackingError` alone.
    """

    def __init__(self, root: Path):
        """The store that MLFLOW_TRACKING_URI names, or else an SQLite database.

        Args:
          root: the output folder, where that database and artifacts without a server go.

        Raises:
          TrackingError: it cannot be reached.
        """
        self.uri = os.environ.get(URI_VARIABLE) or _sqlite_uri(root / "mlflow.db")
        self.shown, self._secrets = _scheme_alone(self.uri), list[str]()
        self._root = root
        with self._explained():
            self.shown, self._secrets = told_apart(self.uri)
            self.client: Any = _Explaining(self._connect(), self._explained)

    def experiment(self, name: str) -> str:
        """Id of the experiment of this name (MLFLOW_EXPERIMENT_NAME over it); made if need be."""
        name = os.environ.get(EXPERIMENT_VARIABLE) or name
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name, self._artifacts(), _EXPERIMENT_TAGS)
            except TrackingError:  # unless another process was quicker
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"MLflow at {self.shown}: the experiment {name!r} was deleted there; restore it, "
                f"or name another one in {EXPERIMENT_VARIABLE}"
            )
        return found.experiment_id

    def where_to_look(self, experiment: str, run: str) -> str:
        """What a person opens or types to see a run."""
        if self.uri.startswith("http"):
            return f"{self.shown.rstrip('/')}/#/experiments/{experiment}/runs/{run}"
        return f"mlflow ui --backend-store-uri {shlex.quote(self.shown)}"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns whatever goes wrong with the store into one line without passwords.

        Raises:
          TrackingError: in place of the dozens of kinds that mlflow, requests, SQLAlchemy and
            database drivers raise.
        """
        try:
            yield
        except JaxtraderError:
            raise
        except Exception as error:
            text = str(error).replace(self.uri, self.shown)
            text = " ".join(text.split()) or type(error).__name__
            for secret in self._secrets:
                text = text.replace(secret, "***")
            # Not chained: the cause's own text may hold the password.
            raise TrackingError(f"MLflow at {self.shown}: {text[:500]}") from None

    def _connect(self) -> MlflowClient:
        from mlflow.tracking import MlflowClient

        if not _is_database(self.uri):
            return MlflowClient(self.uri)
        import sqlalchemy

        path = _sqlite_path(self.uri)
        # Processes that create the same database at once break it, MLflow's own lock or not.
        lock = path and waiting_for(path.with_name(f".{path.name}.lock"), "creates the database")
        with lock or contextlib.nullcontext():
            engine = sqlalchemy.create_engine(self.uri)
            engine.connect().close()  # where this fails, MLflow would try for minutes
            engine.dispose()
            client = MlflowClient(self.uri)
            client.search_experiments(max_results=1)
            return client

    def _artifacts(self) -> str | None:
        """Where artifacts go; None leaves it to the server."""
        if self.uri.startswith(("http", "databricks")):
            return None
        path = _sqlite_path(self.uri)
        folder = path.parent if path else self._root
        return (folder.absolute() / "mlartifacts").as_uri()


class _Explaining:
    """An object whose methods run in a context."""

    def __init__(self, wrapped: object, context: Callable[[], AbstractContextManager[None]]):
        self._wrapped = wrapped
        self._context = context

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._wrapped, name)

        @functools.wraps(method)
        def explained(*arguments: Any, **keywords: Any) -> Any:
            with self._context():
                return method(*arguments, **keywords)

        return explained


@contextlib.contextmanager
def waiting_for(path: Path, purpose: str) -> Iterator[None]:
    """Holds a lock that others hold only for moments, or until they end.

    Raises:
      JaxtraderError: the folder cannot be written.
    """
    while True:
        try:
            lock = Lock(path, purpose)
            break
        except JaxtraderError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
        time.sleep(0.1)
    try:
        yield
    finally:
        lock.close()


def told_apart(uri: str) -> tuple[str, list[str]]:
    """What may be shown of a URI and what may not: who logs in, and with what.

    Returns:
      The URI without it, and the words that are left out, as written and decoded, the longest
      first.

    Raises:
      TrackingError: the one cannot be told from the other.
    """
    try:
        parts = urlsplit(uri)  # also a database's: MLflow reads its scheme like this
        shown, words = _of_database(uri) if _is_database(uri) else _of_others(parts)
    except ValueError:  # its text may hold the password
        raise TrackingError(
            f"{URI_VARIABLE}, which begins with {_scheme_alone(uri)}, cannot be read; is it "
            "scheme://user:password@host:port/name? Signs such as @ : / # [ in a name or password "
            "are written %40 %3A %2F %23 %5B"
        ) from None
    secrets = {*words, *map(quote, words), *map(unquote, words)} - {""}
    return (shown if secrets else uri), sorted(secrets, key=len, reverse=True)


def _of_database(uri: str) -> tuple[str, list[str]]:
    """As SQLAlchemy reads it, which takes `#`, `/` and `?` in a password for a part of it."""
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except ArgumentError as error:
        raise ValueError from error
    if url.host and "@" in f"{url.host}/{url.database}":
        raise ValueError("the rest of a password, or else a strange name")
    login = str(url.password or url.username or "")
    place = URL.create(url.drivername, host=url.host, port=url.port, database=url.database)
    shown = place.render_as_string()
    shown = shown.replace("://", "://***@", 1) if login else shown
    words = [word for values in url.normalized_query.values() for word in values]
    return shown + ("?***" if words else ""), [login, *words]


def _of_others(parts: SplitResult) -> tuple[str, list[str]]:
    """As MLflow and requests read it: a `#`, `/` or `?` ends a password."""
    behind = parts.query + parts.fragment
    # In the path of a plain address or of a file, an @ may belong to somebody's name.
    if ":" in parts.netloc or "@" in parts.netloc or not parts.path.startswith("/"):
        behind += parts.path
    if "@" in behind:
        raise ValueError("the rest of a password, or else a strange name")
    user, at, host = parts.netloc.rpartition("@")
    netloc, query = ("***" if user else "") + at + host, "***" if parts.query else ""
    words = [user.partition(":")[2] or user, parts.query, *re.findall(r"=([^&]+)", parts.query)]
    return urlunsplit(parts._replace(netloc=netloc, query=query)), words


def _is_database(uri: str) -> bool:
    return uri.partition(":")[0].partition("+")[0].lower() in _DATABASES


def _scheme_alone(uri: str) -> str:
    scheme = re.match(r"[\w+.-]*", uri)
    return f"{scheme[0] if scheme else ''}://***"


def _sqlite_uri(path: Path) -> str:
    return "sqlite:///" + re.sub("[%?#]", lambda match: quote(match[0]), str(path.absolute()))


def _sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite database; None for other URIs and for one in memory."""
    scheme, _, path = uri.partition(":///")
    path = unquote(path.partition("?")[0])
    return Path(path) if scheme.startswith("sqlite") and path not in ("", ":memory:") else None
