"""The user database of an image: passwd, group, and the home of the user that containers run as."""

from __future__ import annotations

import attrs

from nixery_core.errors import InvalidConfig
from nixery_core.model.image import check_run_config
from nixery_core.model.oci import ContainerConfig

_FIRST_ID = 1000
"""Number of a user or group that is only named: the first one for people on most systems."""
_NOBODY = 65534
_KNOWN = {"root": 0, "nobody": _NOBODY}
_MAX_ID = 2**32 - 2
"""The largest number that is a user: -1 means "no change" (chown(2))."""


@attrs.frozen
class User:
    """The user of an image, as numbers and names."""

    name: str
    uid: int
    group: str
    gid: int

    @property
    def home(self) -> str | None:
        """The home directory that the image makes for this user; None for root and nobody."""
        return None if self.uid in _KNOWN.values() else f"/home/{self.name}"

    @classmethod
    def parse(cls, text: str) -> User:
        """Read the ``User`` of a run configuration; raises InvalidConfig.

        A name alone gets number 1000; a number alone gets the name ``user``; the group is the
        user's own where none is given.

        >>> User.parse("app")
        User(name='app', uid=1000, group='app', gid=1000)
        >>> User.parse("1001:root")
        User(name='user', uid=1001, group='root', gid=0)
        """
        check_run_config(ContainerConfig(user=text))
        user, colon, group = text.partition(":")
        name, uid = _identity(user or "root", "user")
        if colon:
            return cls(name, uid, *_identity(group, name if name not in _KNOWN else "group"))
        return cls(name, uid, name, uid)


def _identity(text: str, unnamed: str) -> tuple[str, int]:
    if not text.isdigit():
        return text, _KNOWN.get(text, _FIRST_ID)
    number = int(text)
    if number > _MAX_ID:
        raise InvalidConfig(f"{text} is not the number of a user or group", hint=f"they end at {_MAX_ID}")
    return next((name for name, known in _KNOWN.items() if known == number), unnamed), number


def passwd(user: User, shell: str) -> bytes:
    """Return ``/etc/passwd`` with root, nobody and *user* (passwd(5))."""
    lines = [
        f"root:x:0:0:root:/root:{shell}",
        f"nobody:x:{_NOBODY}:{_NOBODY}:nobody:/nonexistent:/sbin/nologin",
    ]
    if user.home is not None:
        lines.append(f"{user.name}:x:{user.uid}:{user.gid}::{user.home}:{shell}")
    return "".join(line + "\n" for line in lines).encode()


def group(user: User) -> bytes:
    """Return ``/etc/group`` with the groups of root, nobody and *user* (group(5))."""
    lines = ["root:x:0:", f"nobody:x:{_NOBODY}:"]
    if user.gid not in _KNOWN.values():
        lines.append(f"{user.group}:x:{user.gid}:")
    return "".join(line + "\n" for line in lines).encode()


NSSWITCH = b"passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
"""``/etc/nsswitch.conf``: without it glibc asks DNS before ``/etc/hosts`` (nsswitch.conf(5))."""


def check_listed(text: str, passwd_file: bytes | None, group_file: bytes | None) -> None:
    """Raise InvalidConfig if the user *text* has a name that the image's own databases do not list.

    A database that is None cannot be looked into, and is not asked.
    """
    user, _, group_name = text.partition(":")
    for name, database, path in ((user, passwd_file, "/etc/passwd"), (group_name, group_file, "/etc/group")):
        if database is None or not name or name.isdigit():
            continue
        if not any(line.partition(b":")[0] == name.encode() for line in database.splitlines()):
            raise InvalidConfig(
                f"the image runs as {text}, but {name} is not in the {path} that its packages or custom files bring",
                hint=f"add it to that {path}, or use numbers",
            )
