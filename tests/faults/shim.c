/* Loaded before libc (LD_PRELOAD): counts the calls that change files below a folder, and at the n-th of them kills
 * the process or lets the call fail. Also shifts the wall clock. Unarmed, it does nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, KILL, FAIL_ONCE, FAIL_ON };
enum { PATH = 1, DATA = 2, REMOVE = 4 }; /* makes or renames entries; writes or flushes content; removes */

static char root[PATH_MAX];
static size_t root_length;
static int action, error, kinds;
static long first, calls, calls_of[5]; /* all that count; by kind */
static long clock_step, clock_calls;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* Arm: act on the call number `at` (from 0) of those of `which` kinds below `folder`. */
void fault_arm(const char *folder, int what, long at, int code, int which) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    action = what, first = at, error = code, kinds = which;
    memset(calls_of, 0, sizeof calls_of);
    __atomic_store_n(&calls, 0, __ATOMIC_SEQ_CST);
}

/* How many calls of a kind there have been. */
long fault_calls(int kind) { return __atomic_load_n(&calls_of[kind], __ATOMIC_SEQ_CST); }

/* Let the wall clock jump by `seconds` to and fro at every look at it. */
void fault_clock(long seconds) { clock_step = seconds; }

static int is_below(const char *path) {
    return root_length && path && strncmp(path, root, root_length) == 0;
}

static int is_fd_below(int fd) {
    char link[64], path[PATH_MAX];
    if (!root_length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static int is_at_below(int fd, const char *path) {
    return path && path[0] != '/' && fd != AT_FDCWD ? is_fd_below(fd) : is_below(path);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Returns whether the call is to fail; with KILL it does not return, after half of the content is written. */
static int strikes(int kind, int fd, const void *content, size_t size) {
    __atomic_fetch_add(&calls_of[kind], 1, __ATOMIC_SEQ_CST);
    if (!(kind & kinds)) return 0;
    long number = __atomic_fetch_add(&calls, 1, __ATOMIC_SEQ_CST);
    if (action == KILL && number == first) {
        REAL(write);
        if (content && size > 1 && real(fd, content, size / 2) < 0) die();
        die();
    }
    if ((action == FAIL_ONCE && number == first) || (action == FAIL_ON && number >= first)) {
        errno = error;
        return 1;
    }
    return 0;
}

static int opens_for_writing(int flags) { return flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        REAL(name); \
        if (opens_for_writing(flags) && is_below(path) && strikes(PATH, -1, NULL, 0)) return -1; \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        REAL(name); \
        if (opens_for_writing(flags) && is_at_below(folder, path) && strikes(PATH, -1, NULL, 0)) return -1; \
        return real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *content, size_t size) {
    REAL(write);
    if (is_fd_below(fd) && strikes(DATA, fd, content, size)) return -1;
    return real(fd, content, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    if (is_fd_below(fd) && strikes(DATA, fd, parts[0].iov_base, parts[0].iov_len)) return -1;
    return real(fd, parts, count);
}

#define PWRITE(name, offset_type) \
    ssize_t name(int fd, const void *content, size_t size, offset_type offset) { \
        REAL(name); \
        if (is_fd_below(fd) && strikes(DATA, fd, NULL, 0)) return -1; \
        return real(fd, content, size, offset); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define ON_FD(name, declaration, call) \
    int name declaration { \
        REAL(name); \
        if (is_fd_below(fd) && strikes(DATA, fd, NULL, 0)) return -1; \
        return real call; \
    }
ON_FD(fsync, (int fd), (fd))
ON_FD(fdatasync, (int fd), (fd))
ON_FD(ftruncate, (int fd, off_t size), (fd, size))
ON_FD(ftruncate64, (int fd, off64_t size), (fd, size))

ssize_t sendfile64(int fd, int from, off64_t *offset, size_t size) {
    REAL(sendfile64);
    if (is_fd_below(fd) && strikes(DATA, fd, NULL, 0)) return -1;
    return real(fd, from, offset, size);
}

#define ON_PATH(name, kind, declaration, test, call) \
    int name declaration { \
        REAL(name); \
        if ((test) && strikes(kind, -1, NULL, 0)) return -1; \
        return real call; \
    }
ON_PATH(mkdir, PATH, (const char *path, mode_t mode), is_below(path), (path, mode))
ON_PATH(mkdirat, PATH, (int at, const char *path, mode_t mode), is_at_below(at, path), (at, path, mode))
ON_PATH(rename, PATH, (const char *from, const char *to), is_below(to), (from, to))
ON_PATH(renameat, PATH, (int a, const char *from, int b, const char *to), is_at_below(b, to), (a, from, b, to))
ON_PATH(unlink, REMOVE, (const char *path), is_below(path), (path))
ON_PATH(unlinkat, REMOVE, (int at, const char *path, int flags), is_at_below(at, path), (at, path, flags))
ON_PATH(rmdir, REMOVE, (const char *path), is_below(path), (path))

static long shift(void) {
    if (!clock_step) return 0;
    return __atomic_fetch_add(&clock_calls, 1, __ATOMIC_SEQ_CST) % 2 ? clock_step : -clock_step;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    REAL(clock_gettime);
    int outcome = real(id, now);
    if (id == CLOCK_REALTIME) now->tv_sec += shift();
    return outcome;
}

time_t time(time_t *out) {
    REAL(time);
    time_t now = real(NULL) + shift();
    if (out) *out = now;
    return now;
}
