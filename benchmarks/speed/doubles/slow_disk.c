/* A disk that takes its time: loaded before the C library (LD_PRELOAD), every fsync and fdatasync takes
   FSYNC_US microseconds more than this machine's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static useconds_t pause_us;

__attribute__((constructor)) static void begin(void) {
    const char *given = getenv("FSYNC_US");
    pause_us = given ? (useconds_t)atol(given) : 0;
}

int fsync(int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    usleep(pause_us);
    return real(file);
}

int fdatasync(int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    usleep(pause_us);
    return real(file);
}
