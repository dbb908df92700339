/*
 * guestprog - the program that the integration tests run inside containers and virtual machines.
 *
 * One static binary, no library beyond libc, no files needed. The verb is argv[0] when the program was started through a
 * link of that name, otherwise argv[1]. `guestprog help` lists the verbs. Every verb prints what it saw in a form that is
 * easy to compare, exits 0 on success, 1 with "<verb>: <object>: <reason>" on standard error when a system call failed, and 2
 * when it was called wrongly.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysinfo.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static const char *verb = "guestprog";

static _Noreturn void fail(const char *object)
{
    int error = errno;
    fflush(stdout);
    fprintf(stderr, "%s: %s: %s\n", verb, object, strerror(error));
    exit(1);
}

static _Noreturn void misuse(const char *text)
{
    fprintf(stderr, "%s: usage: %s\n", verb, text);
    exit(2);
}

static long number(const char *text)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 0);
    if (errno || *end || end == text) {
        fprintf(stderr, "%s: not a number: %s\n", verb, text);
        exit(2);
    }
    return value;
}

static void write_all(int fd, const void *data, size_t size)
{
    const char *at = data;
    while (size > 0) {
        ssize_t done = write(fd, at, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            fail("write");
        at += done;
        size -= (size_t)done;
    }
}

/* Copy until end of file; returns the number of bytes. */
static uint64_t copy(int from, int to)
{
    char buffer[65536];
    uint64_t total = 0;
    for (;;) {
        ssize_t got = read(from, buffer, sizeof buffer);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            fail("read");
        if (got == 0)
            return total;
        write_all(to, buffer, (size_t)got);
        total += (uint64_t)got;
    }
}

static void pause_ms(long ms)
{
    struct timespec left = {ms / 1000, (ms % 1000) * 1000000L};
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

/* Ready marks let a test wait for a line instead of sleeping. */
static void say(const char *line)
{
    puts(line);
    fflush(stdout);
}

/* ---- exits and output ------------------------------------------------------------------------------------------- */

static int do_true(int argc, char **argv)
{
    (void)argc, (void)argv;
    return 0;
}

static int do_false(int argc, char **argv)
{
    (void)argc, (void)argv;
    return 1;
}

static int do_exit(int argc, char **argv)
{
    return argc > 1 ? (int)number(argv[1]) : 0;
}

static int do_die(int argc, char **argv)
{
    int which = argc > 1 ? (int)number(argv[1]) : SIGKILL;
    signal(which, SIG_DFL);
    kill(getpid(), which);
    pause_ms(100); /* PID 1 of a namespace ignores what it has no handler for: see crash */
    return 99;
}

static int do_crash(int argc, char **argv)
{
    /* A fault kills even PID 1 of a namespace, which ignores signals that it is merely sent. */
    (void)argc, (void)argv;
    int *volatile nowhere = NULL;
    return *nowhere;
}

static int do_echo(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        printf("%s%s", i > 1 ? " " : "", argv[i]);
    putchar('\n');
    return 0;
}

static int do_both(int argc, char **argv)
{
    printf("%s\n", argc > 1 ? argv[1] : "out");
    fflush(stdout);
    fprintf(stderr, "%s\n", argc > 2 ? argv[2] : "err");
    return 0;
}

static int do_spam(int argc, char **argv)
{
    if (argc < 2)
        misuse("spam BYTES [err]");
    static char block[65536];
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = i % 64 == 63 ? '\n' : (char)('0' + i % 64);
    int fd = argc > 2 ? 2 : 1;
    for (uint64_t left = (uint64_t)number(argv[1]); left > 0;) {
        size_t now = left < sizeof block ? (size_t)left : sizeof block;
        write_all(fd, block, now);
        left -= now;
    }
    return 0;
}

static int do_cat(int argc, char **argv)
{
    if (argc < 2)
        copy(0, 1);
    for (int i = 1; i < argc; i++) {
        int fd = open(argv[i], O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            fail(argv[i]);
        copy(fd, 1);
        close(fd);
    }
    return 0;
}

static int do_count(int argc, char **argv)
{
    (void)argc, (void)argv;
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (null < 0)
        fail("/dev/null");
    printf("%" PRIu64 "\n", copy(0, null));
    return 0;
}

static int do_ticks(int argc, char **argv)
{
    long count = argc > 1 ? number(argv[1]) : LONG_MAX;
    long ms = argc > 2 ? number(argv[2]) : 100;
    for (long i = 1; i <= count; i++) {
        printf("tick %ld\n", i);
        fflush(stdout);
        if (i < count)
            pause_ms(ms);
    }
    return 0;
}

/* ---- terminal --------------------------------------------------------------------------------------------------- */

static int do_isatty(int argc, char **argv)
{
    (void)argc, (void)argv;
    printf("%d %d %d\n", isatty(0), isatty(1), isatty(2));
    return 0;
}

static int do_winsize(int argc, char **argv)
{
    (void)argc, (void)argv;
    struct winsize size;
    if (ioctl(0, TIOCGWINSZ, &size) < 0)
        fail("TIOCGWINSZ");
    printf("%hu %hu\n", size.ws_row, size.ws_col);
    return 0;
}

static volatile sig_atomic_t last_signal;

static void note_signal(int which)
{
    last_signal = which;
}

static void catch(int which, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    sigaction(which, &action, NULL);
}

static int do_resizes(int argc, char **argv)
{
    (void)argc, (void)argv;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGWINCH);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (;;) {
        struct winsize size;
        if (ioctl(0, TIOCGWINSZ, &size) < 0)
            fail("TIOCGWINSZ");
        printf("%hu %hu\n", size.ws_row, size.ws_col);
        fflush(stdout);
        sigwaitinfo(&set, NULL);
    }
}

static int do_tty(int argc, char **argv)
{
    (void)argc, (void)argv;
    printf("%s sid=%d pgrp=%d foreground=%d\n", ttyname(0) ? ttyname(0) : "not a tty", getsid(0), getpgrp(), tcgetpgrp(0));
    return 0;
}

static int do_raw(int argc, char **argv)
{
    (void)argc, (void)argv;
    struct termios mode;
    if (tcgetattr(0, &mode) < 0)
        fail("tcgetattr");
    cfmakeraw(&mode);
    tcsetattr(0, TCSANOW, &mode);
    write_all(1, "ready\r\n", 7);
    for (unsigned char byte; read(0, &byte, 1) == 1;) {
        char text[8];
        write_all(1, text, (size_t)snprintf(text, sizeof text, "%02x\r\n", byte));
        if (byte == 'q')
            return 0;
    }
    return 1;
}

/* ---- what the process sees of itself ------------------------------------------------------------------------------ */

extern char **environ;

static int do_env(int argc, char **argv)
{
    if (argc > 1) {
        const char *value = getenv(argv[1]);
        if (!value)
            return 1;
        puts(value);
        return 0;
    }
    for (char **entry = environ; *entry; entry++)
        puts(*entry);
    return 0;
}

static int do_pwd(int argc, char **argv)
{
    (void)argc, (void)argv;
    char path[PATH_MAX];
    if (!getcwd(path, sizeof path))
        fail("getcwd");
    puts(path);
    return 0;
}

static int do_id(int argc, char **argv)
{
    (void)argc, (void)argv;
    gid_t groups[256];
    int count = getgroups(256, groups);
    printf("uid=%u gid=%u groups=", getuid(), getgid());
    for (int i = 0; i < count; i++)
        printf("%s%u", i ? "," : "", groups[i]);
    putchar('\n');
    return 0;
}

static int do_args(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        printf("[%s]\n", argv[i]);
    return 0;
}

static int do_pid(int argc, char **argv)
{
    (void)argc, (void)argv;
    printf("%d %d\n", getpid(), getppid());
    return 0;
}

/* Lines of /proc/PID/status that begin with one of the given words. */
static void status_lines(const char *const *keys)
{
    FILE *file = fopen("/proc/self/status", "re");
    if (!file)
        fail("/proc/self/status");
    char line[512];
    while (fgets(line, sizeof line, file))
        for (const char *const *key = keys; *key; key++)
            if (!strncmp(line, *key, strlen(*key)))
                fputs(line, stdout);
    fclose(file);
}

static int do_caps(int argc, char **argv)
{
    (void)argc, (void)argv;
    static const char *const keys[] = {"CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:", NULL};
    status_lines(keys);
    return 0;
}

static int do_limits(int argc, char **argv)
{
    (void)argc, (void)argv;
    static const struct { const char *name; int id; } limits[] = {
        {"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC}, {"core", RLIMIT_CORE}, {"memlock", RLIMIT_MEMLOCK}, {"stack", RLIMIT_STACK},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit value;
        getrlimit((unsigned)limits[i].id, &value);
        printf("%s %" PRId64 " %" PRId64 "\n", limits[i].name, (int64_t)value.rlim_cur, (int64_t)value.rlim_max);
    }
    return 0;
}

static int do_uname(int argc, char **argv)
{
    struct utsname name;
    uname(&name);
    const char *what = argc > 1 ? argv[1] : "-s";
    if (!strcmp(what, "-r"))
        puts(name.release);
    else if (!strcmp(what, "-n"))
        puts(name.nodename);
    else if (!strcmp(what, "-m"))
        puts(name.machine);
    else if (!strcmp(what, "-a"))
        printf("%s %s %s %s %s\n", name.sysname, name.nodename, name.release, name.version, name.machine);
    else
        puts(name.sysname);
    return 0;
}

static int do_fds(int argc, char **argv)
{
    (void)argc, (void)argv;
    for (int fd = 0; fd < 1024; fd++) {
        char path[64], target[PATH_MAX];
        if (fcntl(fd, F_GETFD) < 0)
            continue;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t size = readlink(path, target, sizeof target - 1);
        target[size < 0 ? 0 : size] = 0;
        printf("%d %s\n", fd, target);
    }
    return 0;
}

static int do_signals(int argc, char **argv)
{
    (void)argc, (void)argv;
    static const char *const keys[] = {"SigBlk:", "SigIgn:", "SigCgt:", NULL};
    status_lines(keys);
    return 0;
}

static int do_sysinfo(int argc, char **argv)
{
    (void)argc, (void)argv;
    struct sysinfo info;
    sysinfo(&info);
    printf("cpus %ld memory %" PRIu64 "\n", sysconf(_SC_NPROCESSORS_ONLN), (uint64_t)info.totalram * info.mem_unit);
    return 0;
}

static int do_time(int argc, char **argv)
{
    (void)argc, (void)argv;
    printf("%" PRId64 "\n", (int64_t)time(NULL));
    return 0;
}

/* ---- files -------------------------------------------------------------------------------------------------------- */

static int do_write(int argc, char **argv)
{
    if (argc != 3)
        misuse("write FILE TEXT");
    int fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        fail(argv[1]);
    write_all(fd, argv[2], strlen(argv[2]));
    if (fsync(fd) < 0 && errno != EINVAL)
        fail(argv[1]);
    return 0;
}

static int do_append(int argc, char **argv)
{
    if (argc != 3)
        misuse("append FILE TEXT");
    int fd = open(argv[1], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0)
        fail(argv[1]);
    write_all(fd, argv[2], strlen(argv[2]));
    return 0;
}

static int do_fill(int argc, char **argv)
{
    if (argc != 3)
        misuse("fill FILE MEBIBYTES");
    static char block[1 << 20];
    int fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        fail(argv[1]);
    memset(block, 0x5a, sizeof block);
    for (long i = number(argv[2]); i > 0; i--)
        write_all(fd, block, sizeof block);
    if (fsync(fd) < 0)
        fail(argv[1]);
    return 0;
}

static int do_rm(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (remove(argv[i]) < 0)
            fail(argv[i]);
    return 0;
}

static int do_mkdir(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (mkdir(argv[i], 0755) < 0)
            fail(argv[i]);
    return 0;
}

static int do_ln(int argc, char **argv)
{
    if (argc != 4 || (strcmp(argv[1], "-s") && strcmp(argv[1], "-h")))
        misuse("ln -s|-h OLD NEW");
    if ((argv[1][1] == 's' ? symlink : link)(argv[2], argv[3]) < 0)
        fail(argv[3]);
    return 0;
}

static int do_mv(int argc, char **argv)
{
    if (argc != 3)
        misuse("mv OLD NEW");
    if (rename(argv[1], argv[2]) < 0)
        fail(argv[1]);
    return 0;
}

static int do_chmod(int argc, char **argv)
{
    if (argc != 3)
        misuse("chmod OCTAL FILE");
    if (chmod(argv[2], (mode_t)strtoul(argv[1], NULL, 8)) < 0)
        fail(argv[2]);
    return 0;
}

static int do_chown(int argc, char **argv)
{
    if (argc != 4)
        misuse("chown UID GID FILE");
    if (lchown(argv[3], (uid_t)number(argv[1]), (gid_t)number(argv[2])) < 0)
        fail(argv[3]);
    return 0;
}

static int do_mknod(int argc, char **argv)
{
    if (argc != 5)
        misuse("mknod FILE c|b|p MAJOR MINOR");
    mode_t type = *argv[2] == 'c' ? S_IFCHR : *argv[2] == 'b' ? S_IFBLK : S_IFIFO;
    if (mknod(argv[1], type | 0600, makedev((unsigned)number(argv[3]), (unsigned)number(argv[4]))) < 0)
        fail(argv[1]);
    return 0;
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int do_ls(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : ".";
    DIR *dir = opendir(path);
    if (!dir)
        fail(path);
    size_t count = 0, room = 0;
    char **names = NULL;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (count == room && !(names = realloc(names, (room = room * 2 + 64) * sizeof *names)))
            fail("memory");
        if (!(names[count++] = strdup(entry->d_name)))
            fail("memory");
    }
    closedir(dir);
    if (count)
        qsort(names, count, sizeof *names, compare);
    for (size_t i = 0; i < count; i++)
        puts(names[i]);
    return 0;
}

static int do_stat(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        struct stat info;
        char target[PATH_MAX] = "";
        if (lstat(argv[i], &info) < 0)
            fail(argv[i]);
        if (S_ISLNK(info.st_mode)) {
            ssize_t size = readlink(argv[i], target, sizeof target - 1);
            target[size < 0 ? 0 : size] = 0;
        }
        const char *kind = S_ISREG(info.st_mode)    ? "file"
                           : S_ISDIR(info.st_mode)  ? "directory"
                           : S_ISLNK(info.st_mode)  ? "symlink"
                           : S_ISCHR(info.st_mode)  ? "char"
                           : S_ISBLK(info.st_mode)  ? "block"
                           : S_ISFIFO(info.st_mode) ? "fifo"
                                                    : "socket";
        printf("%s %s mode=%04o uid=%u gid=%u size=%" PRId64 " links=%lu rdev=%u:%u mtime=%" PRId64 "%s%s\n", argv[i], kind,
               info.st_mode & 07777, info.st_uid, info.st_gid, S_ISDIR(info.st_mode) ? (int64_t)0 : (int64_t)info.st_size,
               S_ISDIR(info.st_mode) ? 0UL : (unsigned long)info.st_nlink, major(info.st_rdev), minor(info.st_rdev),
               (int64_t)info.st_mtime, *target ? " -> " : "", target);
    }
    return 0;
}

static int do_xattr(int argc, char **argv)
{
    if (argc < 3)
        misuse("xattr FILE NAME [VALUE]");
    if (argc == 4) {
        if (lsetxattr(argv[1], argv[2], argv[3], strlen(argv[3]), 0) < 0)
            fail(argv[2]);
        return 0;
    }
    unsigned char value[65536];
    ssize_t size = lgetxattr(argv[1], argv[2], value, sizeof value);
    if (size < 0)
        fail(argv[2]);
    for (ssize_t i = 0; i < size; i++)
        printf("%02x", value[i]);
    putchar('\n');
    return 0;
}

static int do_df(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "/";
    struct statfs info;
    if (statfs(path, &info) < 0)
        fail(path);
    printf("type=%lx size=%" PRIu64 " free=%" PRIu64 " readonly=%d\n", (unsigned long)info.f_type,
           (uint64_t)info.f_blocks * (uint64_t)info.f_bsize, (uint64_t)info.f_bavail * (uint64_t)info.f_bsize,
           !!(info.f_flags & 1 /* ST_RDONLY */));
    return 0;
}

/* FNV-1a, 64 bits: enough to see that a file arrived whole. */
static int do_sum(int argc, char **argv)
{
    int fd = argc > 1 ? open(argv[1], O_RDONLY | O_CLOEXEC) : 0;
    if (fd < 0)
        fail(argv[1]);
    uint64_t sum = 0xcbf29ce484222325u, size = 0;
    unsigned char buffer[65536];
    for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) != 0;) {
        if (got < 0)
            fail(argc > 1 ? argv[1] : "stdin");
        for (ssize_t i = 0; i < got; i++)
            sum = (sum ^ buffer[i]) * 0x100000001b3u;
        size += (uint64_t)got;
    }
    printf("%016" PRIx64 " %" PRIu64 "\n", sum, size);
    return 0;
}

static int do_mounts(int argc, char **argv)
{
    (void)argc, (void)argv;
    char *self[] = {"cat", "/proc/self/mountinfo", NULL};
    return do_cat(2, self);
}

static int do_mount(int argc, char **argv)
{
    if (argc < 4)
        misuse("mount TYPE SOURCE TARGET [OPTIONS]");
    if (mount(argv[2], argv[3], argv[1], 0, argc > 4 ? argv[4] : NULL) < 0)
        fail(argv[3]);
    return 0;
}

/* ---- processes ------------------------------------------------------------------------------------------------------ */

static int do_sleep(int argc, char **argv)
{
    if (argc < 2)
        for (;;)
            pause();
    pause_ms((long)(strtod(argv[1], NULL) * 1000));
    return 0;
}

static int do_fork_bomb(int argc, char **argv)
{
    long wanted = argc > 1 ? number(argv[1]) : 1000, made = 0;
    setpgid(0, 0); /* so that kill(0) below reaches the children only */
    for (; made < wanted; made++) {
        pid_t child = fork();
        if (child < 0)
            break;
        if (child == 0)
            for (;;)
                pause();
    }
    printf("forked %ld%s%s\n", made, made < wanted ? ": " : "", made < wanted ? strerror(errno) : "");
    fflush(stdout);
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM);
    while (wait(NULL) > 0 || errno == EINTR)
        ;
    return 0;
}

static int do_alloc(int argc, char **argv)
{
    long mebibytes = argc > 1 ? number(argv[1]) : 64;
    for (long i = 0; i < mebibytes; i++) {
        char *block = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED)
            fail("mmap");
        for (size_t at = 0; at < 1 << 20; at += 4096)
            block[at] = (char)(at + (size_t)i);
    }
    printf("allocated %ld\n", mebibytes);
    fflush(stdout);
    if (argc > 2)
        pause_ms(number(argv[2]));
    return 0;
}

static int do_burn(int argc, char **argv)
{
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    long ms = argc > 1 ? number(argv[1]) : 1000;
    volatile uint64_t work = 0;
    do {
        for (int i = 0; i < 100000; i++)
            work += (uint64_t)i;
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < ms);
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("cpu_ms %ld\n", (long)(used.ru_utime.tv_sec * 1000 + used.ru_utime.tv_usec / 1000));
    return 0;
}

static int do_signal_report(int argc, char **argv)
{
    (void)argc, (void)argv;
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    say("ready");
    for (;;) {
        int which = sigwaitinfo(&set, NULL);
        if (which < 0)
            continue;
        const char *name = sigabbrev_np(which);
        printf("%s\n", name ? name : "RT");
        fflush(stdout);
        if (which == SIGTERM || which == SIGQUIT)
            return 0;
    }
}

static int do_trap_term(int argc, char **argv)
{
    catch(SIGTERM, note_signal);
    say("ready");
    while (last_signal != SIGTERM)
        pause_ms(1000);
    say("got TERM");
    return argc > 1 ? (int)number(argv[1]) : 0;
}

static int do_ignore_term(int argc, char **argv)
{
    (void)argc, (void)argv;
    catch(SIGTERM, SIG_IGN);
    say("ready");
    while (pause() < 0)
        ;
    return 0;
}

static int do_orphan(int argc, char **argv)
{
    long ms = argc > 1 ? number(argv[1]) : 200;
    if (fork() == 0) {
        setsid();
        if (fork() == 0) {
            pause_ms(ms);
            printf("orphan of %d\n", getppid());
            fflush(stdout);
        }
        _exit(0);
    }
    wait(NULL);
    say("parent done");
    return 0;
}

static int do_zombies(int argc, char **argv)
{
    (void)argc, (void)argv;
    DIR *proc = opendir("/proc");
    if (!proc)
        fail("/proc");
    int count = 0;
    for (struct dirent *entry; (entry = readdir(proc));) {
        char path[300], text[512];
        if (*entry->d_name < '0' || *entry->d_name > '9')
            continue;
        snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
        FILE *file = fopen(path, "re");
        if (!file)
            continue;
        if (fgets(text, sizeof text, file)) {
            const char *state = strrchr(text, ')');
            count += state && state[1] && state[2] == 'Z';
        }
        fclose(file);
    }
    closedir(proc);
    printf("%d\n", count);
    return 0;
}

static int do_spawn(int argc, char **argv)
{
    long count = argc > 1 ? number(argv[1]) : 1;
    for (long i = 0; i < count; i++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0)
            for (;;)
                pause();
        printf("%d\n", child);
    }
    say("ready");
    for (;;)
        pause();
}

static int do_ps(int argc, char **argv)
{
    (void)argc, (void)argv;
    DIR *proc = opendir("/proc");
    if (!proc)
        fail("/proc");
    for (struct dirent *entry; (entry = readdir(proc));) {
        char path[300], text[4096];
        if (*entry->d_name < '0' || *entry->d_name > '9')
            continue;
        snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t size = read(fd, text, sizeof text - 1);
        close(fd);
        if (size <= 0)
            continue;
        for (ssize_t i = 0; i + 1 < size; i++)
            if (!text[i])
                text[i] = ' ';
        text[size] = 0;
        printf("%s %s\n", entry->d_name, text);
    }
    closedir(proc);
    return 0;
}

static int do_exec(int argc, char **argv)
{
    if (argc < 2)
        misuse("exec COMMAND ARG...");
    execvp(argv[1], argv + 1);
    fail(argv[1]);
}

static int do_close(int argc, char **argv)
{
    /* Closes its output and lives on: the container must still count as running. */
    (void)argc, (void)argv;
    close(1);
    close(2);
    pause_ms(argc > 1 ? number(argv[1]) : 1000);
    return 7;
}

static int do_unshare(int argc, char **argv)
{
    if (argc != 2)
        misuse("unshare FLAGS");
    if (unshare((int)number(argv[1])) < 0)
        fail("unshare");
    say("ok");
    return 0;
}

static int do_init(int argc, char **argv)
{
    /* The whole of a guest for measurements: PID 1 of an initramfs that says one line and ends the machine (QEMU: -no-reboot). */
    (void)argc, (void)argv;
    say("ready");
    if (getpid() != 1)
        return 0;
    reboot(RB_AUTOBOOT);
    for (;;)
        pause();
}

static int do_panic(int argc, char **argv)
{
    /* Crashes the kernel it runs on. Only ever used inside a virtual machine. */
    char *all[] = {"alloc", "1048576", NULL};
    (void)argc, (void)argv;
    int fd = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        write_all(fd, "c", 1);
    fd = open("/proc/sys/vm/panic_on_oom", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        fail("/proc/sys/vm/panic_on_oom");
    write_all(fd, "2", 1);
    return do_alloc(2, all);
}

/* ---- network -------------------------------------------------------------------------------------------------------- */

static int any_socket(int type, long port)
{
    int fd = socket(AF_INET6, type | SOCK_CLOEXEC, 0), one = 1, zero = 0;
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_addr = in6addr_any};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
        if (bind(fd, (struct sockaddr *)&six, sizeof six) == 0)
            return fd;
        close(fd);
    }
    fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&four, sizeof four) < 0)
        fail("bind");
    return fd;
}

static void print_peer(const struct sockaddr_storage *address)
{
    char text[INET6_ADDRSTRLEN] = "?";
    if (address->ss_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)address)->sin_addr, text, sizeof text);
    else
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)address)->sin6_addr, text, sizeof text);
    printf("from %s\n", strncmp(text, "::ffff:", 7) ? text : text + 7);
    fflush(stdout);
}

static int do_listen(int argc, char **argv)
{
    if (argc < 2)
        misuse("listen PORT [GREETING]");
    signal(SIGCHLD, SIG_IGN);
    int fd = any_socket(SOCK_STREAM, number(argv[1]));
    if (listen(fd, 64) < 0)
        fail("listen");
    printf("listening on %s\n", argv[1]);
    fflush(stdout);
    for (;;) {
        struct sockaddr_storage peer;
        socklen_t size = sizeof peer;
        int client = accept4(fd, (struct sockaddr *)&peer, &size, SOCK_CLOEXEC);
        if (client < 0)
            continue;
        print_peer(&peer);
        if (fork() == 0) {
            if (argc > 2)
                write_all(client, argv[2], strlen(argv[2]));
            copy(client, client);
            _exit(0);
        }
        close(client);
    }
}

static int do_http(int argc, char **argv)
{
    if (argc < 3)
        misuse("http PORT BODY");
    int fd = any_socket(SOCK_STREAM, number(argv[1]));
    if (listen(fd, 64) < 0)
        fail("listen");
    printf("listening on %s\n", argv[1]);
    fflush(stdout);
    for (;;) {
        char request[4096];
        int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0)
            continue;
        if (read(client, request, sizeof request) > 0)
            dprintf(client, "HTTP/1.0 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s", strlen(argv[2]), argv[2]);
        close(client);
    }
}

static int do_udp(int argc, char **argv)
{
    if (argc < 2)
        misuse("udp PORT");
    int fd = any_socket(SOCK_DGRAM, number(argv[1]));
    printf("listening on %s\n", argv[1]);
    fflush(stdout);
    for (;;) {
        char buffer[65536];
        struct sockaddr_storage peer;
        socklen_t size = sizeof peer;
        ssize_t got = recvfrom(fd, buffer, sizeof buffer, 0, (struct sockaddr *)&peer, &size);
        if (got >= 0)
            sendto(fd, buffer, (size_t)got, 0, (struct sockaddr *)&peer, size);
    }
}

/* Numeric addresses, and names through /etc/hosts only: a static program has no resolver worth the name. */
static struct in_addr resolve(const char *host)
{
    struct in_addr address;
    if (inet_pton(AF_INET, host, &address) == 1)
        return address;
    FILE *file = fopen("/etc/hosts", "re");
    char line[1024];
    while (file && fgets(line, sizeof line, file)) {
        char *save, *number = strtok_r(line, " \t\n", &save);
        for (char *name; number && (name = strtok_r(NULL, " \t\n", &save));)
            if (!strcmp(name, host) && inet_pton(AF_INET, number, &address) == 1) {
                fclose(file);
                return address;
            }
    }
    fprintf(stderr, "%s: %s: unknown host\n", verb, host);
    exit(1);
}

static int do_resolve(int argc, char **argv)
{
    if (argc != 2)
        misuse("resolve NAME");
    struct in_addr address = resolve(argv[1]);
    char text[INET_ADDRSTRLEN];
    puts(inet_ntop(AF_INET, &address, text, sizeof text));
    return 0;
}

static int do_connect(int argc, char **argv)
{
    if (argc < 3)
        misuse("connect HOST PORT [TEXT]");
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons((uint16_t)number(argv[2])), .sin_addr = resolve(argv[1])};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {5, 0};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&peer, sizeof peer) < 0)
        fail(argv[1]);
    if (argc > 3)
        write_all(fd, argv[3], strlen(argv[3]));
    else
        copy(0, fd);
    shutdown(fd, SHUT_WR);
    copy(fd, 1);
    return 0;
}

static int do_udp_send(int argc, char **argv)
{
    if (argc != 4)
        misuse("udp-send HOST PORT TEXT");
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons((uint16_t)number(argv[2])), .sin_addr = resolve(argv[1])};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    char buffer[65536];
    sendto(fd, argv[3], strlen(argv[3]), 0, (struct sockaddr *)&peer, sizeof peer);
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    if (poll(&ready, 1, 5000) != 1) {
        errno = ETIMEDOUT;
        fail(argv[1]);
    }
    ssize_t got = recv(fd, buffer, sizeof buffer, 0);
    if (got < 0)
        fail(argv[1]);
    write_all(1, buffer, (size_t)got);
    return 0;
}

static int do_interfaces(int argc, char **argv)
{
    (void)argc, (void)argv;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct if_nameindex *all = if_nameindex();
    if (fd < 0 || !all)
        fail("interfaces");
    for (struct if_nameindex *at = all; at->if_index; at++) {
        struct ifreq request = {0};
        char address[INET_ADDRSTRLEN] = "-";
        snprintf(request.ifr_name, sizeof request.ifr_name, "%s", at->if_name);
        if (ioctl(fd, SIOCGIFADDR, &request) == 0)
            inet_ntop(AF_INET, &((struct sockaddr_in *)&request.ifr_addr)->sin_addr, address, sizeof address);
        bool up = ioctl(fd, SIOCGIFFLAGS, &request) == 0 && request.ifr_flags & IFF_UP;
        int mtu = ioctl(fd, SIOCGIFMTU, &request) == 0 ? request.ifr_mtu : 0;
        printf("%s %s %s mtu=%d\n", at->if_name, up ? "up" : "down", address, mtu);
    }
    if_freenameindex(all);
    return 0;
}

static int do_route(int argc, char **argv)
{
    (void)argc, (void)argv;
    FILE *file = fopen("/proc/net/route", "re");
    char line[512], name[64];
    unsigned destination, gateway;
    if (!file)
        fail("/proc/net/route");
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "%63s %x %x", name, &destination, &gateway) != 3 || destination)
            continue;
        struct in_addr address = {gateway};
        printf("default via %s dev %s\n", inet_ntoa(address), name);
    }
    fclose(file);
    return 0;
}

/* ---- table ------------------------------------------------------------------------------------------------------------ */

static int do_help(int argc, char **argv);

static const struct verb {
    const char *name, *arguments;
    int (*run)(int argc, char **argv);
} verbs[] = {
    {"help", "", do_help},
    {"true", "", do_true},
    {"false", "", do_false},
    {"exit", "[CODE]", do_exit},
    {"die", "[SIGNAL]", do_die},
    {"crash", "", do_crash},
    {"echo", "WORD...", do_echo},
    {"both", "[OUT] [ERR]", do_both},
    {"spam", "BYTES [err]", do_spam},
    {"cat", "[FILE...]", do_cat},
    {"read", "FILE...", do_cat},
    {"count", "", do_count},
    {"ticks", "[COUNT] [MS]", do_ticks},
    {"isatty", "", do_isatty},
    {"winsize", "", do_winsize},
    {"resizes", "", do_resizes},
    {"tty", "", do_tty},
    {"raw", "", do_raw},
    {"env", "[NAME]", do_env},
    {"pwd", "", do_pwd},
    {"id", "", do_id},
    {"args", "WORD...", do_args},
    {"pid", "", do_pid},
    {"caps", "", do_caps},
    {"limits", "", do_limits},
    {"uname", "[-s|-r|-n|-m|-a]", do_uname},
    {"fds", "", do_fds},
    {"signals", "", do_signals},
    {"sysinfo", "", do_sysinfo},
    {"time", "", do_time},
    {"write", "FILE TEXT", do_write},
    {"append", "FILE TEXT", do_append},
    {"fill", "FILE MEBIBYTES", do_fill},
    {"rm", "FILE...", do_rm},
    {"mkdir", "DIRECTORY...", do_mkdir},
    {"ln", "-s|-h OLD NEW", do_ln},
    {"mv", "OLD NEW", do_mv},
    {"chmod", "OCTAL FILE", do_chmod},
    {"chown", "UID GID FILE", do_chown},
    {"mknod", "FILE c|b|p MAJOR MINOR", do_mknod},
    {"ls", "[DIRECTORY]", do_ls},
    {"stat", "FILE...", do_stat},
    {"xattr", "FILE NAME [VALUE]", do_xattr},
    {"df", "[PATH]", do_df},
    {"sum", "[FILE]", do_sum},
    {"mounts", "", do_mounts},
    {"mount", "TYPE SOURCE TARGET [OPTIONS]", do_mount},
    {"sleep", "[SECONDS]", do_sleep},
    {"fork-bomb", "[COUNT]", do_fork_bomb},
    {"alloc", "[MEBIBYTES] [HOLD_MS]", do_alloc},
    {"burn", "[MS]", do_burn},
    {"signal-report", "", do_signal_report},
    {"trap-term", "[CODE]", do_trap_term},
    {"ignore-term", "", do_ignore_term},
    {"orphan", "[MS]", do_orphan},
    {"zombies", "", do_zombies},
    {"spawn", "[COUNT]", do_spawn},
    {"ps", "", do_ps},
    {"exec", "COMMAND ARG...", do_exec},
    {"close", "[MS]", do_close},
    {"unshare", "FLAGS", do_unshare},
    {"init", "", do_init},
    {"panic", "", do_panic},
    {"listen", "PORT [GREETING]", do_listen},
    {"http", "PORT BODY", do_http},
    {"udp", "PORT", do_udp},
    {"resolve", "NAME", do_resolve},
    {"connect", "HOST PORT [TEXT]", do_connect},
    {"udp-send", "HOST PORT TEXT", do_udp_send},
    {"interfaces", "", do_interfaces},
    {"route", "", do_route},
};

static int do_help(int argc, char **argv)
{
    /* `help names` is what the image recipe makes links from. */
    bool names = argc > 1 && !strcmp(argv[1], "names");
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        printf(names ? "%s\n" : "%s %s\n", verbs[i].name, verbs[i].arguments);
    return 0;
}

int main(int argc, char **argv)
{
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    verb = argc > 0 ? (slash ? slash + 1 : argv[0]) : "";
    if (!strcmp(verb, "guestprog")) {
        argc--, argv++;
        verb = argc > 0 ? argv[0] : "help";
    }
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        if (!strcmp(verb, verbs[i].name))
            return verbs[i].run(argc, argv);
    fprintf(stderr, "guestprog: no such verb: %s\n", verb);
    return 2;
}
