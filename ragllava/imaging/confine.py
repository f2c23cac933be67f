"""What a process that decodes pictures gives up before its first picture (docs/reliability.md D14).

It keeps its pipes and its memory. Landlock takes away files, TCP and signals to others; seccomp takes away sockets, new
processes and the system calls that reach into other processes or the kernel. Each is used where the kernel has it.
"""

from __future__ import annotations

import errno
import os
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import PIL

# Libraries of the system that Python may load later, such as those of a codec.
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")

# Of texts in SVG, and of PDF documents that do not embed theirs.
_FONTS = ("/usr/share/fonts", "/usr/local/share/fonts", "/etc/fonts")

_DENIED_CALLS = """
    socket socketpair connect bind listen accept accept4
    execve execveat fork vfork
    kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal pidfd_getfd
    ptrace process_vm_readv process_vm_writev process_madvise kcmp
    io_uring_setup io_uring_enter io_uring_register bpf perf_event_open userfaultfd
    add_key request_key keyctl mount umount2 pivot_root chroot unshare setns open_tree move_mount fsopen fsmount
    init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff
    name_to_handle_at open_by_handle_at quotactl acct settimeofday clock_settime sethostname setdomainname
    setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset personality
"""
_CLONE_THREAD = 0x10000


def confine() -> list[str]:
    """Give up what decoding does not need; returns the protections that are in force, for people. Not reversible."""
    active = []
    # Both are prepared before one is in force: to find the C library, a new process is started.
    available = [protection for protection in (_Landlock, _Seccomp) if protection.is_available()]
    for protection in available:
        with suppress(OSError):  # the kernel has it, but a container or its configuration forbids it
            protection.apply()
            active.append(protection.name)
    return active


class _Landlock:
    """No files but the code of Python, its libraries and fonts, no TCP, no signals to other processes."""

    name = "Landlock"

    @staticmethod
    def is_available() -> bool:
        with suppress(ImportError):  # not Linux
            import landlockpy

            return landlockpy.supported()
        return False

    @staticmethod
    def apply() -> None:
        from landlockpy import AccessFS, Ruleset, Scope

        # Everything that the ruleset handles and no rule allows is refused.
        with Ruleset(scoped=Scope.SIGNAL | Scope.ABSTRACT_UNIX_SOCKET) as ruleset:
            for path in _code():
                ruleset.allow_path(path, AccessFS.READ_FILE | (AccessFS.READ_DIR if path.is_dir() else AccessFS.NONE))
            ruleset.restrict()


def _code() -> Iterator[Path]:
    """Where Python, its libraries and fonts are: a module that is imported late must still be found."""
    modules = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    modules |= {Path(str(PIL.__file__)).parent, Path(__file__).parents[1]}
    yield from (path for path in modules | set(map(Path, (*_SYSTEM_LIBRARIES, *_FONTS))) if path.exists())


class _Seccomp:
    """No sockets, no new processes, and no system call that reaches into other processes or changes the system."""

    name = "seccomp"

    @staticmethod
    def is_available() -> bool:
        with suppress(ImportError, OSError):
            import seccompy

            return seccompy.supported()
        return False

    @staticmethod
    def apply() -> None:
        from seccompy import ArgCmp, CmpOp, Filter

        calls = Filter()
        for name in _DENIED_CALLS.split():
            with suppress(ValueError):  # this processor's Linux has no such call
                calls.errno(name, errno.EPERM)
        # A thread is allowed, a process is not. The arguments of clone3 cannot be seen; without it, libc takes clone.
        calls.errno("clone", errno.EPERM, args=[ArgCmp(0, CmpOp.MASKED_EQ, 0, _CLONE_THREAD)])
        calls.errno("clone3", errno.ENOSYS)
        # abort() signals the process itself.
        calls.errno("tgkill", errno.EPERM, args=[ArgCmp(0, CmpOp.NE, os.getpid())])
        calls.load()
