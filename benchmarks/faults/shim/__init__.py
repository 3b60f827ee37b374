"""A clock that jumps and a disk that says no, for one process: a library that is loaded before the C library.

Linux alone has it (LD_PRELOAD, `cc`). What it does not reach: programs that are linked statically, files that
are mapped into memory (SQLite's `-shm`), and what the kernel writes by itself. A small tmpfs would do without
it, but mounting one takes rights that a container lacks.
"""
