/* A clock that jumps and a disk that says no, for one process: loaded before the C library (LD_PRELOAD).

   FAULTS_CONTROL names a file of `struct control`, which the laboratory changes while the process runs;
   FAULTS_DISK is the folder whose files fail. The monotonic clock is left alone, as it is when somebody sets a
   machine's clock. What is read is never changed, nor is what a process maps into its memory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPENS = 1, WRITES = 2, SYNCS = 4, NAMES = 8, READS = 16 };

struct control {
    int64_t offset_ns; /* added to the wall clock */
    int32_t error;     /* errno of what fails; 0: nothing does */
    int32_t calls;     /* which calls fail */
};

static volatile struct control *control;
static const char *disk;
static size_t disk_length;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTS_CONTROL");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *found = file < 0 ? MAP_FAILED : mmap(0, sizeof *control, PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0)
        close(file);
    disk = getenv("FAULTS_DISK");
    disk_length = disk ? strlen(disk) : 0;
    control = found == MAP_FAILED ? 0 : found;
}

static int fails(int call, const char *path) {
    if (!control || !control->error || !(control->calls & call) || !disk || !path || strncmp(path, disk, disk_length))
        return 0;
    errno = control->error;
    return 1;
}

/* Tells whether a call on an open file, or on a path below an open folder, is to fail. */
static int fails_at(int call, int file, const char *path) {
    char real[2 * PATH_MAX], link[64];
    ssize_t length;
    if (!control || !control->error || !(control->calls & call))
        return 0;
    if (path && path[0] == '/')
        return fails(call, path);
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    if ((length = readlink(file == AT_FDCWD ? "/proc/self/cwd" : link, real, PATH_MAX - 1)) < 0)
        return 0;
    snprintf(real + length, PATH_MAX, "%s%s", path ? "/" : "", path ? path : "");
    return fails(call, real);
}

#define NEXT(name) \
    static __typeof__(name) *next; \
    if (!next) \
    next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int clock_gettime(clockid_t id, struct timespec *now) {
    NEXT(clock_gettime);
    int done = next(id, now);
    if (done == 0 && control && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        int64_t all = now->tv_sec * 1000000000LL + now->tv_nsec + control->offset_ns;
        now->tv_sec = all / 1000000000LL, now->tv_nsec = all % 1000000000LL;
    }
    return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec at;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &at);
    now->tv_sec = at.tv_sec, now->tv_usec = at.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (now)
        *now = at.tv_sec;
    return at.tv_sec;
}

#define WRITING (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        NEXT(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if ((flags & WRITING) && fails_at(OPENS, AT_FDCWD, path)) \
            return -1; \
        return next(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        NEXT(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if ((flags & WRITING) && fails_at(OPENS, folder, path)) \
            return -1; \
        return next(folder, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define ON_FILE(type, name, call, parameters, arguments) \
    type name parameters { \
        NEXT(name); \
        if (fails_at(call, file, 0)) \
            return -1; \
        return next arguments; \
    }
ON_FILE(ssize_t, write, WRITES, (int file, const void *data, size_t size), (file, data, size))
ON_FILE(ssize_t, writev, WRITES, (int file, const struct iovec *data, int count), (file, data, count))
ON_FILE(ssize_t, pwrite, WRITES, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
ON_FILE(ssize_t, pwrite64, WRITES, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
ON_FILE(int, ftruncate, WRITES, (int file, off_t size), (file, size))
ON_FILE(int, ftruncate64, WRITES, (int file, off64_t size), (file, size))
ON_FILE(int, fsync, SYNCS, (int file), (file))
ON_FILE(int, fdatasync, SYNCS, (int file), (file))
ON_FILE(ssize_t, read, READS, (int file, void *data, size_t size), (file, data, size))
ON_FILE(ssize_t, pread, READS, (int file, void *data, size_t size, off_t at), (file, data, size, at))
ON_FILE(ssize_t, pread64, READS, (int file, void *data, size_t size, off64_t at), (file, data, size, at))

#define ON_NAME(name, parameters, folder, path, arguments) \
    int name parameters { \
        NEXT(name); \
        if (fails_at(NAMES, folder, path)) \
            return -1; \
        return next arguments; \
    }
ON_NAME(rename, (const char *from, const char *to), AT_FDCWD, to, (from, to))
ON_NAME(renameat, (int from, const char *name, int to, const char *as), to, as, (from, name, to, as))
ON_NAME(unlink, (const char *path), AT_FDCWD, path, (path))
ON_NAME(unlinkat, (int folder, const char *path, int flags), folder, path, (folder, path, flags))
ON_NAME(mkdir, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
ON_NAME(rmdir, (const char *path), AT_FDCWD, path, (path))
