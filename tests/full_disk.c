/* A disk that becomes full: loaded with LD_PRELOAD, it lets the first N calls that need space under one folder
 * through, and answers "No space left on device" to every later one. full_disk(folder, N) switches it on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_long calls, allowed = -1;

void full_disk(const char *path, long count) {
    strncpy(folder, path, sizeof folder - 1);
    atomic_store(&calls, 0);
    atomic_store(&allowed, count);
}

long full_disk_calls(void) { return atomic_load(&calls); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int inside(const char *path) {
    char whole[PATH_MAX * 2];
    if (path[0] != '/') {
        if (!getcwd(whole, PATH_MAX)) return 0;
        strcat(whole, "/");
        strncat(whole, path, PATH_MAX - 1);
        path = whole;
    }
    return strncmp(path, folder, strlen(folder)) == 0;
}

/* 1 if there is no more room for this call. */
static int full(void) {
    if (atomic_load(&allowed) < 0) return 0;
    if (atomic_fetch_add(&calls, 1) < atomic_load(&allowed)) return 0;
    errno = ENOSPC;
    return 1;
}

static int full_path(const char *path) { return atomic_load(&allowed) >= 0 && inside(path) && full(); }

static int full_descriptor(int descriptor) {
    char link[64], path[PATH_MAX];
    ssize_t size;
    if (atomic_load(&allowed) < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return inside(path) && full();
}

static int makes(const char *path, int flags) {
    struct stat found;
    return (flags & O_CREAT) && stat(path, &found) != 0;
}

#define OPEN(name)                                                      \
    int name(const char *path, int flags, ...) {                        \
        mode_t mode = 0;                                                \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        if (flags & (O_CREAT | O_TMPFILE)) mode = va_arg(rest, mode_t); \
        va_end(rest);                                                   \
        if (makes(path, flags) && full_path(path)) return -1;           \
        return REAL(name)(path, flags, mode);                           \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                               \
    int name(int where, const char *path, int flags, ...) {                        \
        mode_t mode = 0;                                                           \
        va_list rest;                                                              \
        va_start(rest, flags);                                                     \
        if (flags & (O_CREAT | O_TMPFILE)) mode = va_arg(rest, mode_t);            \
        va_end(rest);                                                              \
        if (where == AT_FDCWD && makes(path, flags) && full_path(path)) return -1; \
        return REAL(name)(where, path, flags, mode);                               \
    }
OPENAT(openat)
OPENAT(openat64)

int mkdir(const char *path, mode_t mode) { return full_path(path) ? -1 : REAL(mkdir)(path, mode); }
int link(const char *from, const char *to) { return full_path(to) ? -1 : REAL(link)(from, to); }
int symlink(const char *to, const char *path) { return full_path(path) ? -1 : REAL(symlink)(to, path); }
int rename(const char *from, const char *to) { return full_path(to) ? -1 : REAL(rename)(from, to); }
ssize_t write(int d, const void *b, size_t n) { return full_descriptor(d) ? -1 : REAL(write)(d, b, n); }
ssize_t pwrite(int d, const void *b, size_t n, off_t o) { return full_descriptor(d) ? -1 : REAL(pwrite)(d, b, n, o); }
ssize_t pwrite64(int d, const void *b, size_t n, off64_t o) {
    return full_descriptor(d) ? -1 : REAL(pwrite64)(d, b, n, o);
}
ssize_t writev(int d, const struct iovec *v, int n) { return full_descriptor(d) ? -1 : REAL(writev)(d, v, n); }
int ftruncate(int d, off_t n) { return full_descriptor(d) ? -1 : REAL(ftruncate)(d, n); }
int ftruncate64(int d, off64_t n) { return full_descriptor(d) ? -1 : REAL(ftruncate64)(d, n); }
int fallocate(int d, int m, off_t o, off_t n) { return full_descriptor(d) ? -1 : REAL(fallocate)(d, m, o, n); }
int posix_fallocate(int d, off_t o, off_t n) {
    return full_descriptor(d) ? ENOSPC : REAL(posix_fallocate)(d, o, n);
}
int posix_fallocate64(int d, off64_t o, off64_t n) {
    return full_descriptor(d) ? ENOSPC : REAL(posix_fallocate64)(d, o, n);
}
int fsync(int d) { return full_descriptor(d) ? -1 : REAL(fsync)(d); }
int fdatasync(int d) { return full_descriptor(d) ? -1 : REAL(fdatasync)(d); }
ssize_t sendfile(int to, int from, off_t *o, size_t n) {
    ssize_t (*real)(int, int, off_t *, size_t) = dlsym(RTLD_NEXT, "sendfile");
    return full_descriptor(to) ? -1 : real(to, from, o, n);
}
ssize_t sendfile64(int to, int from, off64_t *o, size_t n) {
    ssize_t (*real)(int, int, off64_t *, size_t) = dlsym(RTLD_NEXT, "sendfile64");
    return full_descriptor(to) ? -1 : real(to, from, o, n);
}
ssize_t copy_file_range(int from, off64_t *f, int to, off64_t *t, size_t n, unsigned int flags) {
    return full_descriptor(to) ? -1 : REAL(copy_file_range)(from, f, to, t, n, flags);
}
