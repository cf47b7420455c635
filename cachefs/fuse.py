"""The kernel's door: translates, and nothing else.

pyfuse3 ends the whole mount on any exception that is not ``FUSEError``, so every handler answers through
``replying``, which turns errors of ours into their errno and anything unforeseen into EIO with a logged
traceback.
"""

import errno
import logging
import os
import stat as stat_bits
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from cachefs.core import xattrs
from cachefs.core.errors import CachefsError, NoEntry, NoMemory, errno_of, shortage
from cachefs.core.types import Fh, Ino, Kind, Name
from cachefs.engine.attributes import Stat
from cachefs.engine.cause import because
from cachefs.engine.filesystem import Changes, FileSystem
from cachefs.engine.handles import Opened
from cachefs.engine.listing import Reader
from cachefs.engine.service import Service
from cachefs.engine.threads import Threads
from cachefs.engine.told import Unaware
from cachefs.engine.untold import Forget
from cachefs.remote import deadline

_log = logging.getLogger(__name__)

_READ_AHEAD_KB = 1024
"""The kernel's default of 128 KiB costs a warm sequential read two thirds of its speed."""
_FORMAT = {
    Kind.FILE: stat_bits.S_IFREG,
    Kind.DIR: stat_bits.S_IFDIR,
    Kind.SYMLINK: stat_bits.S_IFLNK,
    Kind.FIFO: stat_bits.S_IFIFO,
    Kind.SOCKET: stat_bits.S_IFSOCK,
}
_SPECIAL = {stat_bits.S_IFIFO: Kind.FIFO, stat_bits.S_IFSOCK: Kind.SOCKET}
_READDIR_PAGE = 256
_DOTS = 2
"""Cookies 1 and 2 are ``.`` and ``..``; a child's cookie is its inode number plus this."""


class replying:
    """Answers a request within *timeout_s* seconds of waiting, and with an errno where the block raises."""

    __slots__ = ("_cause", "_limit", "_operation")

    def __init__(self, operation: str, timeout_s: float) -> None:
        self._operation = operation
        self._limit = deadline.limited(timeout_s)
        self._cause = because(operation)

    def __enter__(self) -> None:
        self._limit.__enter__()
        self._cause.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cause.__exit__()
        self._limit.__exit__()
        if error is None or isinstance(error, FUSEError) or not isinstance(error, Exception):
            return
        known = _known(error)
        if known is not None:
            number = errno_of(known)
            level = logging.DEBUG if known is error else logging.ERROR
            _log.log(level, "%s: %s: %s", self._operation, errno.errorcode.get(number), known)
            raise FUSEError(number) from None
        _log.error("%s failed unforeseen", self._operation, exc_info=error)
        raise FUSEError(errno.EIO) from None


def _known(error: Exception) -> CachefsError | None:
    """Return *error* as one of ours, if somebody has foreseen it."""
    if isinstance(error, CachefsError):
        return error
    if isinstance(error, MemoryError):
        return NoMemory("no memory")
    return shortage(error) if isinstance(error, OSError) else None


def _attributes(found: Stat) -> EntryAttributes:
    attrs = found.attrs
    entry = EntryAttributes()
    entry.st_ino = InodeT(found.ino)
    entry.generation = 0
    entry.entry_timeout = found.name_ttl_s
    entry.attr_timeout = found.attrs_ttl_s
    entry.st_mode = ModeT(_FORMAT[attrs.kind] | attrs.mode)
    # One link for directories too: tools that count subdirectories by links then look for themselves.
    entry.st_nlink = found.links
    entry.st_uid = attrs.uid
    entry.st_gid = attrs.gid
    entry.st_rdev = 0
    entry.st_size = attrs.size
    entry.st_blksize = 4096
    entry.st_blocks = -(-attrs.size // 512)
    entry.st_atime_ns = attrs.atime_ns
    entry.st_mtime_ns = attrs.mtime_ns
    entry.st_ctime_ns = attrs.ctime_ns
    return entry


def _file_info(opened: Opened) -> FileInfo:
    return FileInfo(fh=FileHandleT(opened.fh), keep_cache=opened.keep_cache)


@dataclass(slots=True)
class _Directory:
    """One directory handle."""

    reader: Reader
    was_read: bool = False
    appetite: int = _READDIR_PAGE
    """How many names the kernel took the last time: more are not read for it."""


class Door(pyfuse3.Operations):
    """The requests of the kernel, one method each."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, fs: FileSystem, on_ready: Callable[[], None], *, timeout_s: float) -> None:
        super().__init__()
        self._fs = fs
        self._on_ready = on_ready
        self._timeout_s = timeout_s
        self._directories: dict[int, _Directory] = {}
        self._last_directory = 0

    def _replying(self, operation: str) -> replying:
        return replying(operation, self._timeout_s)

    def init(self) -> None:
        """Note that the kernel has answered: the mount is there."""
        self._on_ready()

    # ---- names ------------------------------------------------------------------------------

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        with self._replying("lookup"):
            try:
                return _attributes(await self._fs.lookup(Ino(parent_inode), Name(name)))
            except NoEntry:
                absent = EntryAttributes()
                absent.st_ino = InodeT(0)
                absent.entry_timeout = self._fs.negative_ttl_s
                return absent

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Do nothing: rows stay known whether or not the kernel remembers them."""

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        with self._replying("getattr"):
            return _attributes(await self._fs.getattr(Ino(inode)))

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        with self._replying("setattr"):
            changes = Changes(
                size=attr.st_size if fields.update_size else None,
                mode=attr.st_mode & 0o7777 if fields.update_mode else None,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                atime_ns=attr.st_atime_ns if fields.update_atime else None,
                mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            )
            handle = None if fh is None else Fh(fh)
            return _attributes(await self._fs.setattr(Ino(inode), changes, handle))

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        with self._replying("mkdir"):
            made = await self._fs.mkdir(
                Ino(parent_inode), Name(name), mode=mode & ~ctx.umask, uid=ctx.uid, gid=ctx.gid
            )
            return _attributes(made)

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        with self._replying("symlink"):
            made = await self._fs.symlink(
                Ino(parent_inode), Name(name), target, uid=ctx.uid, gid=ctx.gid
            )
            return _attributes(made)

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        with self._replying("readlink"):
            return FileNameT(await self._fs.readlink(Ino(inode)))

    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        with self._replying("mknod"):
            kind = _SPECIAL.get(stat_bits.S_IFMT(mode))
            if kind is not None:
                special = await self._fs.make_special(
                    Ino(parent_inode),
                    Name(name),
                    kind,
                    mode=mode & ~ctx.umask,
                    uid=ctx.uid,
                    gid=ctx.gid,
                )
                return _attributes(special)
            if not stat_bits.S_ISREG(mode):
                raise FUSEError(errno.EPERM)  # a device in a bucket would be one on every machine
            opened, made = await self._fs.create(
                Ino(parent_inode),
                Name(name),
                os.O_EXCL | os.O_WRONLY,
                mode=mode & ~ctx.umask,
                uid=ctx.uid,
                gid=ctx.gid,
            )
            try:
                await self._fs.flush(opened.fh)
            finally:
                await self._fs.release(opened.fh)
            return _attributes(made)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Refuse: an object has one key."""
        raise FUSEError(errno.EPERM)

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        with self._replying("unlink"):
            await self._fs.unlink(Ino(parent_inode), Name(name))

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        with self._replying("rmdir"):
            await self._fs.rmdir(Ino(parent_inode), Name(name))

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        with self._replying("rename"):
            if flags & ~pyfuse3.RENAME_NOREPLACE:
                raise FUSEError(errno.EINVAL)
            await self._fs.rename(
                Ino(parent_inode_old),
                Name(name_old),
                Ino(parent_inode_new),
                Name(name_new),
                no_replace=bool(flags & pyfuse3.RENAME_NOREPLACE),
            )

    # ---- directories ------------------------------------------------------------------------

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        with self._replying("opendir"):
            opened = _Directory(await self._fs.opendir(Ino(inode)))
            self._last_directory += 1
            self._directories[self._last_directory] = opened
            return FileHandleT(self._last_directory)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        with self._replying("readdir"):
            opened, cookie = self._directories[fh], start_id
            if cookie == 0 and opened.was_read:
                await self._fs.rewinddir(opened.reader)
            opened.was_read = True
            if cookie < _DOTS and not self._reply_dots(opened.reader.ino, cookie, token):
                return
            taken = 0
            while page := await self._fs.readdir(
                opened.reader,
                max(cookie - _DOTS, 0),
                opened.appetite,
                # What there is is told at once, and nothing that can fail comes behind it.
                may_wait=not taken and cookie >= _DOTS,
            ):
                for name, found in page:
                    cookie = found.ino + _DOTS
                    if not pyfuse3.readdir_reply(
                        token, FileNameT(name), _attributes(found), cookie
                    ):
                        opened.appetite = taken + 1
                        return
                    self._fs.shown(found)
                    taken += 1

    def _reply_dots(self, ino: Ino, cookie: int, token: ReaddirToken) -> bool:
        own = self._fs.directory(ino)
        above = self._fs.directory(self._fs.parent_of(ino))
        for number, name, found in ((1, b".", own), (2, b"..", above)):
            if cookie < number and not pyfuse3.readdir_reply(
                token, FileNameT(name), _attributes(found), number
            ):
                return False
        return True

    async def releasedir(self, fh: FileHandleT) -> None:
        """Forget the handle."""
        self._directories.pop(fh, None)

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Do nothing: names go to the store before the call that makes them returns."""

    # ---- files ------------------------------------------------------------------------------

    @contextmanager
    def _asking_anew(self) -> Iterator[None]:
        """Where an open is refused so that the kernel looks the name up, let it take what it is told then."""
        try:
            yield
        except Unaware as unaware:
            # Now: made to forget while it asks, it would not go by the answer.
            _deliver_all(self._fs)
            self._fs.told.asks_anew(unaware.ino)
            raise

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        with self._replying("open"), self._asking_anew():
            return _file_info(await self._fs.open(Ino(inode), flags))

    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        with self._replying("create"):
            with self._asking_anew():
                opened, made = await self._fs.create(
                    Ino(parent_inode),
                    Name(name),
                    flags,
                    mode=mode & ~ctx.umask,
                    uid=ctx.uid,
                    gid=ctx.gid,
                )
            return _file_info(opened), _attributes(made)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        with self._replying("read"):
            # pyfuse3 answers the kernel before any other task runs, and takes any buffer.
            return await self._fs.read(Fh(fh), off, size)  # type: ignore[return-value]

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        with self._replying("write"):
            return await self._fs.write(Fh(fh), off, buf)

    async def flush(self, fh: FileHandleT) -> None:
        with self._replying("flush"):
            await self._fs.flush(Fh(fh))

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        with self._replying("fsync"):
            await self._fs.fsync(Fh(fh))

    async def release(self, fh: FileHandleT) -> None:
        with self._replying("release"):
            await self._fs.release(Fh(fh))

    # ---- the rest ---------------------------------------------------------------------------

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        with self._replying("statfs"):
            block, blocks = self._fs.statfs()
            found = StatvfsData()
            found.f_bsize = found.f_frsize = block
            found.f_blocks = found.f_bfree = found.f_bavail = blocks
            found.f_files = found.f_ffree = found.f_favail = 2**32
            found.f_namemax = 255
            return found

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        with self._replying("getxattr"):
            _require_user_attribute(name)
            return await self._fs.attributes.getxattr(Ino(inode), name)

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        with self._replying("listxattr"):
            return [XAttrNameT(name) for name in await self._fs.attributes.listxattr(Ino(inode))]

    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        with self._replying("setxattr"):
            _require_user_attribute(name)
            await self._fs.setxattr(Ino(inode), name, value)

    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        with self._replying("removexattr"):
            _require_user_attribute(name)
            await self._fs.setxattr(Ino(inode), name, None)


def _require_user_attribute(name: bytes) -> None:
    """Refuse ACLs, labels and capabilities.

    Not by "no such attribute": told that there are none of a kind, ``ls -l`` stops asking for each file.
    """
    if not name.startswith(xattrs.PREFIX):
        raise FUSEError(errno.ENOTSUP)


def _raise_read_ahead(mountpoint: Path) -> None:
    """Let the kernel read ahead in larger steps, where we may say so (root)."""
    wanted = str(mountpoint)
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        fields = line.split(" ")
        if fields[4].encode().decode("unicode_escape") == wanted:
            try:
                Path(f"/sys/class/bdi/{fields[2]}/read_ahead_kb").write_text(f"{_READ_AHEAD_KB}\n")
            except OSError as error:
                _log.debug("read-ahead stays as it is: %s", error)


async def _tell_kernel(fs: FileSystem) -> None:
    """Have the kernel forget what is another at the store.

    Where that fails it learns by its time-out. Pages need no word: those of a file that is not open are dropped by the open that shows another version, and
    those of an open one belong to the version that it keeps.
    """
    while True:
        await fs.untold.wait()
        _deliver_next(fs)


def _deliver_all(fs: FileSystem) -> None:
    """Have the kernel forget at once what waits for it."""
    while _deliver_next(fs):
        pass


def _deliver_next(fs: FileSystem) -> bool:
    what = fs.untold.take()
    if what is None:
        return False
    _deliver(fs, what)
    return True


def _deliver(fs: FileSystem, what: Forget) -> None:
    if what.name is None:
        fs.told.doubt(what.ino)
        _forget_attributes(InodeT(what.ino))
    else:
        pyfuse3.invalidate_entry_async(InodeT(what.ino), FileNameT(what.name), ignore_enoent=True)


def _is_no_late_word(record: logging.LogRecord) -> bool:
    """Whether pyfuse3 logs anything but that a kernel which has no such mount any more was not told of a change."""
    return "invalidate_entry" not in record.getMessage()


def _forget_attributes(inode: InodeT) -> None:
    try:
        # Attributes alone: for pages the call would wait for reads that only this thread can answer.
        pyfuse3.invalidate_inode(inode, attr_only=True)
    except OSError as error:
        if error.errno != errno.ENOENT:  # which says that the kernel does not know the inode
            _log.warning("the kernel was not told of inode %s: %s", inode, error)


async def serve(
    service: Service,
    mountpoint: Path,
    *,
    fsname: str,
    allow_other: bool,
    read_only: bool,
    kernel_options: Sequence[str] = (),
    on_ready: Callable[[], None],
    stop: trio.Event,
    is_ours: Callable[[], bool],
) -> None:
    """Mount, answer the kernel, and return after the unmount, whoever asked for it.

    *kernel_options* are passed on as they are (``nosuid``, ``noexec`` …). *on_ready* is called once the kernel has answered; *stop* unmounts,
    if *is_ours* says that what is to be seen at *mountpoint* is this mount, and not another that covers it.
    """
    options = {*pyfuse3.default_options, f"fsname={fsname.replace(',', ';')}", "subtype=cachefs"}
    options |= {"allow_other"} if allow_other else set()
    options |= {"ro"} if read_only else set()
    options |= set(kernel_options)
    answered = trio.Event()

    def ready() -> None:
        answered.set()
        on_ready()

    async def tune() -> None:
        # Not before the kernel has its answer to INIT: that sets the read-ahead back to 128 KiB.
        await answered.wait()
        await Threads.helper(_raise_read_ahead, mountpoint)

    door = Door(service.fs, ready, timeout_s=service.timeout_s)
    pyfuse3.init(door, str(mountpoint), options)
    try:
        with service.fs.untold.kept():
            await _answer_kernel(service, stop, tune)
    finally:
        logging.getLogger("pyfuse3").addFilter(_is_no_late_word)
        pyfuse3.close(unmount=is_ours())


async def _answer_kernel(
    service: Service, stop: trio.Event, tune: Callable[[], Awaitable[None]]
) -> None:
    """Answer until the unmount, which *stop* asks for; *tune* runs beside."""
    async with trio.open_nursery() as nursery:

        async def end() -> None:
            await stop.wait()
            pyfuse3.terminate()

        beside = service.background.within(nursery)
        nursery.start_soon(end)
        beside.keep("telling the kernel", lambda: _tell_kernel(service.fs))
        beside.start("setting the read-ahead", tune)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()
