"""Files that are whole or not there."""

import os
import stat
import threading
from pathlib import Path

import pytest

from nixery_core.errors import StorageError, StorageFull
from nixery_core.export import write_file_atomically


def test_a_file_appears_when_the_block_ends(tmp_path):
    """Until then the old content is there; afterwards the new, and nothing else is left."""
    path = tmp_path / "image.tar"
    path.write_bytes(b"old")
    with write_file_atomically(path) as file:
        file.write(b"new ")
        file.write(b"content")
        assert path.read_bytes() == b"old"

    assert path.read_bytes() == b"new content"
    assert [file.name for file in tmp_path.iterdir()] == ["image.tar"]


@pytest.mark.parametrize("cause", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_a_failure_leaves_everything_as_it_was(tmp_path, cause):
    """The temporary file goes, the old file stays, the cause is raised."""
    path = tmp_path / "image.tar"
    path.write_bytes(b"old")

    def interrupted():
        with write_file_atomically(path) as file:
            file.write(b"half")
            raise cause

    with pytest.raises(cause):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["image.tar"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    """The umask decides, not the temporary file."""
    before = os.umask(0o027)
    try:
        with write_file_atomically(tmp_path / "a") as file:
            file.write(b"")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_link_is_followed(tmp_path):
    """The file that the link names is replaced, the link stays."""
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with write_file_atomically(tmp_path / "link") as file:
        file.write(b"new")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_pipe_is_written_to(tmp_path):
    """A named pipe to another program works as an output."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    received = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()))
    reader.start()
    with write_file_atomically(path) as file:
        file.write(b"data")
    reader.join(10)

    assert received == [b"data"]
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.parametrize("name", ["missing/image.tar", ".", "file/image.tar"])
def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path, name):
    """No foreign exception reaches the caller."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError), write_file_atomically(tmp_path / name):
        pytest.fail("the block does not run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_said_to_be_full():
    """The error has the class that the command line gives its own exit code."""
    with pytest.raises(StorageFull), write_file_atomically("/dev/full") as file:
        file.write(b"data")
