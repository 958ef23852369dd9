"""A thin binding of `libbpf.so.1` by ctypes: open an object, size its maps, load, attach, update.

libbpf is a system library (Debian: `libbpf1`), found by its soname. Every function has its argument
and result types; everything else of libbpf is left out. Since 1.0 its functions return a negative
errno. What it logs while a call runs is collected and becomes part of the exception.

An errno becomes a sentence and the command that mends it (`explain`).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from functools import cache

from l7proxy.errors import DatapathUnavailable

SONAME = "libbpf.so.1"
BTF_PATH = "/sys/kernel/btf/vmlinux"

BPF_ANY = 0
BPF_NOEXIST = 1
BPF_SK_SKB_STREAM_VERDICT = 5  # enum bpf_attach_type

_CAPABILITIES = (
    "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON "
    "(containers: --cap-add BPF --cap-add NET_ADMIN --cap-add PERFMON)"
)
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

_log: list[str] = []


def _printer() -> Callable[..., int]:
    vsnprintf = ctypes.CDLL(None).vsnprintf
    vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]
    vsnprintf.restype = ctypes.c_int

    def collect(level: int, form: bytes, arguments: int) -> int:
        # A va_list argument is a pointer on every ABI that Linux BPF runs on.
        if level <= 1:  # LIBBPF_WARN, LIBBPF_INFO
            line = ctypes.create_string_buffer(8192)
            vsnprintf(line, len(line), form, arguments)
            _log.append(line.value.decode(errors="replace").rstrip())
            del _log[:-200]
        return 0

    return _PRINT(collect)


_collect = _printer()  # libbpf keeps the pointer: it must live as long as the library

_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "libbpf_version_string": (ctypes.c_char_p, []),
    "libbpf_set_print": (ctypes.c_void_p, [_PRINT]),
    "bpf_object__open_mem": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]),
    "bpf_object__load": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_object__close": (None, [ctypes.c_void_p]),
    "bpf_object__find_map_by_name": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "bpf_object__find_program_by_name": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "bpf_map__fd": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_map__set_max_entries": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint32]),
    "bpf_map__set_initial_value": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "bpf_program__fd": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_program__set_autoload": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_bool]),
    "bpf_prog_attach": (ctypes.c_int, [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_uint]),
    "bpf_map_update_elem": (
        ctypes.c_int,
        [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64],
    ),
    "bpf_map_lookup_elem": (ctypes.c_int, [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]),
    "bpf_map_delete_elem": (ctypes.c_int, [ctypes.c_int, ctypes.c_void_p]),
    "bpf_map_get_next_key": (ctypes.c_int, [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]),
    "ring_buffer__new": (
        ctypes.c_void_p,
        [ctypes.c_int, _SAMPLE, ctypes.c_void_p, ctypes.c_void_p],
    ),
    "ring_buffer__consume": (ctypes.c_int, [ctypes.c_void_p]),
    "ring_buffer__free": (None, [ctypes.c_void_p]),
    "libbpf_num_possible_cpus": (ctypes.c_int, []),
}


@cache
def library() -> ctypes.CDLL:
    """The loaded library with its signatures set. Raises `DatapathUnavailable`."""
    try:
        lib = ctypes.CDLL(SONAME, use_errno=True)
    except OSError as error:
        raise DatapathUnavailable(
            f"cannot load {SONAME} ({error})",
            "apt-get install libbpf1 (Fedora: dnf install libbpf)",
        ) from None
    try:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.restype = result
            function.argtypes = arguments
    except AttributeError as error:
        raise DatapathUnavailable(
            f"{SONAME} is too old ({error})", "install libbpf 1.1 or later"
        ) from None
    lib.libbpf_set_print(_collect)
    return lib


def map_calls() -> tuple[Callable[..., int], Callable[..., int]]:
    """`bpf_map_update_elem` and `bpf_map_delete_elem` for the hot path, addresses as integers.

    They keep the interpreter's lock: releasing it costs as much as the system call takes.
    """
    library()
    lib = ctypes.PyDLL(SONAME)
    calls = lib.bpf_map_update_elem, lib.bpf_map_delete_elem
    for call in calls:
        call.restype, call.argtypes = _SIGNATURES[call.__name__]
    return calls


def entries(map_fd: int) -> dict[int, int]:
    """All of a hash map from `u64` to `u32` that nobody changes meanwhile. Raises OSError."""
    lib = library()
    key, value, found = ctypes.c_uint64(), ctypes.c_uint32(), {}
    key_at, value_at = ctypes.byref(key), ctypes.byref(value)
    result: int = lib.bpf_map_get_next_key(map_fd, None, key_at)
    while result == 0:
        if lib.bpf_map_lookup_elem(map_fd, key_at, value_at) == 0:
            found[key.value] = value.value
        result = lib.bpf_map_get_next_key(map_fd, key_at, key_at)
    if result != -errno.ENOENT:
        raise OSError(-result, os.strerror(-result))
    return found


def delete(map_fd: int, key: int) -> None:
    """Delete the entry of a `u64`, if there is one."""
    library().bpf_map_delete_elem(map_fd, ctypes.byref(ctypes.c_uint64(key)))


def version() -> str:
    """The library's version, such as `v1.1`. Raises `DatapathUnavailable`."""
    text: bytes = library().libbpf_version_string()
    return text.decode()


def possible_cpus() -> int:
    """How many CPUs this kernel may ever have: the size of per-CPU arrays."""
    return _checked(int(library().libbpf_num_possible_cpus()), "counting CPUs")


class ProgramRefused(DatapathUnavailable):
    """This kernel does not take this program; it may take another one of the same object."""


# Nothing that another program would change.
_NOT_THE_PROGRAM = (errno.EPERM, errno.ENOMEM, errno.ENOSYS, errno.EMFILE, errno.ENFILE)


def explain(
    code: int, what: str, kind: type[DatapathUnavailable] = DatapathUnavailable
) -> DatapathUnavailable:
    """The exception for errno `code` while doing `what`, with the remedy and libbpf's log.

    bpf() answers EPERM where a capability is missing. EACCES and EINVAL are the verifier's (or a
    security module's) and come to root as well.
    """
    name = errno.errorcode.get(code, str(code))
    reason, remedy = f"{what}: {os.strerror(code)}", ""
    if code == errno.EPERM:
        reason, remedy = f"{what}: not permitted ({name})", _CAPABILITIES
    elif code == errno.ENOSYS:
        remedy = "the kernel is built without CONFIG_BPF_SYSCALL"
    elif code == errno.ENOMEM:
        remedy = "the kernel has no memory for the maps: fewer workers or connections"
    elif not os.path.exists(BTF_PATH):
        remedy = f"{BTF_PATH} is missing: the kernel needs CONFIG_DEBUG_INFO_BTF=y"
    elif issubclass(kind, ProgramRefused) and code not in _NOT_THE_PROGRAM:
        reason = f"this kernel refuses the program ({name})"
        remedy = "use Linux 6.12 or later; without CAP_PERFMON every kernel refuses it"
    elif code in (errno.EINVAL, errno.ESRCH, errno.ENOENT, errno.EOPNOTSUPP):
        remedy = "this kernel lacks what the program needs: Linux 6.12 or later"
    if said := _summary(_log):
        reason += f" [{said}]"
    _log.clear()
    if code in _NOT_THE_PROGRAM:
        kind = DatapathUnavailable
    return kind(reason, remedy)


def _summary(log: list[str]) -> str:
    """One line out of what libbpf said: the verifier's own verdict if there is one."""
    lines = [line for text in log for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("libbpf: failed to load object")]
    for at, line in enumerate(lines):
        if line.endswith("-- END PROG LOAD LOG --"):
            told = [one for one in lines[:at] if not one.startswith("processed ")]
            return told[-1].strip() if told else lines[0]
    if len(lines) < 2:
        return "".join(lines)
    return f"{lines[0]} ... {lines[-1]}"


def _checked(result: int, what: str, kind: type[DatapathUnavailable] = DatapathUnavailable) -> int:
    if result < 0:
        raise explain(-result, what, kind)
    return result


class BpfObject:
    """One object file: opened, prepared, then loaded; `close` gives everything back.

    Maps and programs live as long as a descriptor or a socket holds them.
    """

    def __init__(self, image: bytes) -> None:
        self._lib = library()
        _log.clear()
        self._image = image
        ctypes.set_errno(0)
        self._object: int | None = self._lib.bpf_object__open_mem(image, len(image), None)
        if not self._object:
            raise explain(ctypes.get_errno() or errno.EINVAL, "opening the BPF object")

    def _map(self, name: str) -> int:
        found: int | None = self._lib.bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise explain(errno.ENOENT, f"the BPF object has no map {name}")
        return found

    def _program(self, name: str) -> int:
        found: int | None = self._lib.bpf_object__find_program_by_name(self._object, name.encode())
        if not found:
            raise explain(errno.ENOENT, f"the BPF object has no program {name}")
        return found

    def resize(self, name: str, entries: int) -> None:
        """Before `load`: the number of entries of a map, or the bytes of a ring."""
        _checked(self._lib.bpf_map__set_max_entries(self._map(name), entries), f"sizing map {name}")

    def set_constants(self, value: bytes) -> None:
        """Before `load`: the whole content of `.rodata`."""
        _checked(
            self._lib.bpf_map__set_initial_value(self._map(".rodata"), value, len(value)),
            "setting .rodata",
        )

    def choose(self, name: str, wanted: bool) -> None:
        """Before `load`: whether this program is loaded."""
        _checked(
            self._lib.bpf_program__set_autoload(self._program(name), wanted),
            f"choosing program {name}",
        )

    def load(self) -> None:
        """Create the maps and have the kernel verify the programs. Raises `ProgramRefused`."""
        result = self._lib.bpf_object__load(self._object)
        _checked(result, "loading the BPF program", ProgramRefused)
        _log.clear()

    def map_fd(self, name: str) -> int:
        """The descriptor of a loaded map; it belongs to this object."""
        return _checked(self._lib.bpf_map__fd(self._map(name)), f"map {name}")

    def attach_verdict(self, program: str, sockmap: str) -> None:
        """Attach before the first insertion: sockets take the program over when inserted."""
        _checked(
            self._lib.bpf_prog_attach(
                self._lib.bpf_program__fd(self._program(program)),
                self.map_fd(sockmap),
                BPF_SK_SKB_STREAM_VERDICT,
                0,
            ),
            f"attaching program {program}",
        )

    def close(self) -> None:
        """Close the descriptors of this process. Idempotent."""
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = None


class Ring:
    """The consumer of a ring of records that start with a `u32`."""

    def __init__(self, map_fd: int) -> None:
        self._lib = library()
        self._values: list[int] = []
        self._callback = _SAMPLE(self._take)  # libbpf keeps the pointer
        ctypes.set_errno(0)
        self._ring: int | None = self._lib.ring_buffer__new(map_fd, self._callback, None, None)
        if not self._ring:
            raise explain(ctypes.get_errno() or errno.EINVAL, "mapping the event ring")

    def _take(self, _context: int | None, data: int, _size: int) -> int:
        self._values.append(ctypes.c_uint32.from_address(data).value)
        return 0

    def consume(self) -> list[int]:
        """All records there are, oldest first. Raises OSError."""
        result: int = self._lib.ring_buffer__consume(self._ring)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        values = self._values[:]
        self._values.clear()
        return values

    def close(self) -> None:
        """Unmap the ring. Idempotent."""
        if self._ring:
            self._lib.ring_buffer__free(self._ring)
            self._ring = None
