"""A PostgreSQL server of the local stack: made, and started, from the binaries that the machine has."""

import os
import pwd
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe

from services.errors import ConflictError, UnavailableError
from services.secret_files import kept_secret, secrets_folder
from services.settings import Settings

USER = "palimpsest"
DATABASE = "mlflow"
_DEBIAN = Path("/usr/lib/postgresql")
_OWNER = "postgres"
"""User that a stack of root's runs PostgreSQL as, for it refuses to run as root."""


def postgres_binary(name: str) -> str:
    """Path of one of PostgreSQL's programs; the newest version's where Debian has several.

    Raises:
        UnavailableError: it is not installed.
    """
    versions = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which(name)
    if found is None:
        raise _not_installed()
    return found


def _not_installed() -> UnavailableError:
    return UnavailableError("PostgreSQL is not installed; on Debian: apt-get install postgresql.")


def postgres_folder(settings: Settings) -> Path:
    """Where the databases are: in our home, or below that of the user who must own them.

    Raises:
        UnavailableError: there is no such user, so PostgreSQL is not installed.
    """
    if os.getuid() != 0:
        return settings.home / "postgres"
    try:
        owner = pwd.getpwnam(_OWNER)
    except KeyError:
        raise _not_installed() from None
    name = sha256(str(settings.home).encode()).hexdigest()[:8]
    return Path(owner.pw_dir) / f"palimpsest-{name}"


def postgres_command(settings: Settings) -> list[str]:
    """The command line of the server; it stays in the foreground. Connections by TCP only, with the password."""
    options = {
        "listen_addresses": settings.host,
        "port": str(settings.postgres_port),
        "unix_socket_directories": "",
        "shared_buffers": "32MB",
    }
    arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return [*_as_owner(), postgres_binary("postgres"), "-D", str(postgres_folder(settings) / "data"), *arguments]


def postgres_ready(settings: Settings) -> bool:
    """Whether the server takes connections."""
    address = ["-h", settings.host, "-p", str(settings.postgres_port)]
    return subprocess.run([postgres_binary("pg_isready"), "-q", *address], check=False).returncode == 0


def make_postgres(settings: Settings) -> None:
    """Make the databases and a password of their own, unless they are there.

    They are made aside and put in place once they are whole, so what is in place is never begun anew.

    Raises:
        ConflictError: they are there, and their password is gone.
        UnavailableError: PostgreSQL is not installed, or could not make them.
    """
    folder = postgres_folder(settings)
    data, aside, password_file = folder / "data", folder / "data.unfinished", passwords(settings)
    if data.exists():
        if not password_file.exists():
            raise ConflictError(
                f"The databases in {data} are there, but {password_file}, which has their password, is gone: put it "
                "back, or give them a new password (docs/operations.md, Backends)."
            )
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)  # of a try that was killed
    handed = folder / "password"
    handed.touch(mode=0o600)
    handed.write_text(_password(settings))
    if os.getuid() == 0:
        for path in (folder, handed):
            shutil.chown(path, _OWNER)
    try:
        where = ["--pgdata", str(aside), "--pwfile", str(handed)]
        how = ["--username", USER, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]
        _run([postgres_binary("initdb"), *where, *how], folder)
        _run([postgres_binary("postgres"), "--single", "-D", str(aside), "postgres"], folder, _CREATE)
    finally:
        handed.unlink()
    aside.rename(data)


_CREATE = f"CREATE DATABASE {DATABASE};\n"


def passwords(settings: Settings) -> Path:
    """The password file, as libpq reads it from `PGPASSFILE`."""
    return settings.home / "secrets" / "pgpass"


def _password(settings: Settings) -> str:
    """The user's password, kept before anything is made with it; good at every address, for ports are settings."""
    line = kept_secret(secrets_folder(settings) / passwords(settings).name, f"*:*:*:{USER}:{token_urlsafe(24)}\n")
    return line.strip().rpartition(":")[2]


def _as_owner() -> list[str]:
    """What makes a command run as somebody else than root."""
    if os.getuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise UnavailableError("PostgreSQL does not run as root, and there is no setpriv: use another user.")
    return [setpriv, f"--reuid={_OWNER}", f"--regid={_OWNER}", "--init-groups"]


def _run(command: list[str], folder: Path, words: str = "") -> None:
    done = subprocess.run(
        [*_as_owner(), *command], cwd=folder, input=words, text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise UnavailableError(f"PostgreSQL could not be set up in {folder}: {done.stderr.strip()[-300:]}")
