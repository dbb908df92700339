/* `stem run`: carries out one plan without a daemon, and the operations that only such plans have. The caller of the program is the
 * parent of the container's first process and hears of its fate over the status socket (docs/stem-protocol.md, "Run"). */
#include "stem.h"

#include <fcntl.h>
#include <linux/keyctl.h>
#include <linux/mount.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define KEPT_MAX 65536
#define LISTENER_WAIT_NS (10 * NS_PER_S)
#define SHOWN 240 /* bytes of a failed hook's output in the error */

/* ---- numbered descriptors ---- */

/* Takes fd over. */
static int keep_fd(struct child *c, uint64_t number, int fd)
{
	autoclose int from = fd;
	if (fd < 0)
		return fd;
	if (number >= KEPT_MAX)
		return -EBADF;
	if (number >= c->kept_count) {
		int *grown = realloc(c->kept, (number + 1) * sizeof *grown);
		if (!grown)
			return -ENOMEM;
		for (c->kept = grown; c->kept_count <= number; c->kept_count++)
			grown[c->kept_count] = -1;
	}
	close_fd(&c->kept[number]);
	c->kept[number] = fcntl(from, F_DUPFD_CLOEXEC, PLACED_MAX + 1);
	return c->kept[number] < 0 ? -errno : 0;
}

int kept_fd(const struct child *c, uint64_t number)
{
	return number < c->kept_count && c->kept[number] >= 0 ? c->kept[number] : -EBADF;
}

/* ---- talking with the caller ---- */

static int op_sync(struct child *c, struct op *op)
{
	status_send(c, STATUS_SYNC, &(struct failure){ .index = (uint32_t)op->args[0].i }, -1);
	ssize_t n = recv(c->status, NULL, 0, MSG_PEEK | MSG_TRUNC);
	if (n <= 0)
		_exit(127); /* the caller is gone, or does not want us any more */
	free(c->answer);
	c->answer_size = (size_t)n;
	c->answer = malloc((size_t)n + 1);
	if (!c->answer || recv(c->status, c->answer, (size_t)n, 0) != n)
		return -EIO;
	c->answer[n] = 0;
	return 0;
}

static int op_start(struct child *c, struct op *op)
{
	int fd = kept_fd(c, op->args[0].i);
	char byte;
	if (fd < 0)
		return fd;
	status_send(c, STATUS_START, NULL, -1);
	close_fd(&c->status);
	for (;;) {
		ssize_t n = read(fd, &byte, 1);
		if (n == 1)
			return 0;
		if (n == 0 || errno != EINTR)
			return n ? -errno : -EPIPE;
	}
}

/* Between the filter and this there must be no system call that the filter might hand to a listener that nobody has yet. */
int listener_handed_over(struct child *c, int fd)
{
	struct timespec t;
	uint64_t end = 0, now = 0;
	while (c->flag && !*c->flag) {
		clock_gettime(CLOCK_MONOTONIC, &t); /* vDSO */
		now = (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
		end = end ? end : now + LISTENER_WAIT_NS;
		if (now > end)
			return -ETIMEDOUT;
	}
	(void)fd; /* close-on-exec */
	return 0;
}

/* ---- hooks ---- */

static const char *nth_answer(const struct child *c, uint64_t which)
{
	const char *at = c->answer, *end = c->answer + c->answer_size;
	while (at && at < end && which--)
		at += strlen(at) + 1;
	return at && at < end ? at : "";
}

static int memory_file(const char *text)
{
	autoclose int fd = memfd_create("hook", MFD_CLOEXEC);
	size_t n = strlen(text);
	if (fd < 0 || write(fd, text, n) != (ssize_t)n || lseek(fd, 0, SEEK_SET) < 0)
		return -errno;
	return take_fd(&fd);
}

static _Noreturn void hook_child(struct op *op, int in, int out)
{
	size_t argc = op->args[0].i, envc = op->count - 3 - argc;
	char **argv = calloc(argc + 1, sizeof *argv), **env = calloc(envc + 1, sizeof *env);
	if (!argv || !env)
		_exit(127);
	for (size_t i = 0; i < argc; i++)
		argv[i] = op->args[3 + i].s;
	for (size_t i = 0; i < envc; i++)
		env[i] = op->args[3 + argc + i].s;
	setsid();
	umask(022);
	dup2(in, 0);
	dup2(out, 1);
	dup2(out, 2);
	syscall(SYS_close_range, 3, ~0u, 0);
	/* argv[0] is the path; what the program sees as its name is the argument after it */
	execve(argv[0], argc > 1 ? argv + 1 : argv, env);
	dprintf(2, "%s", strerror(errno));
	_exit(127);
}

static void describe_hook(struct child *c, const char *what, int number, int out)
{
	static char text[SHOWN + 100];
	int n = snprintf(text, sizeof text - SHOWN, what, number);
	if (n >= (int)(sizeof text - SHOWN))
		n = (int)(sizeof text - SHOWN) - 1;
	ssize_t shown = pread(out, text + n + 2, SHOWN - 3, 0);
	if (shown > 0) {
		memcpy(text + n, ": ", 2);
		for (text[n + 2 + shown] = 0; shown > 0 && text[n + 1 + shown] == '\n'; shown--)
			text[n + 1 + shown] = 0;
	}
	c->detail = text;
}

static int op_hook(struct child *c, struct op *op)
{
	int pidfd, status;
	if (op->args[0].i > (uint64_t)op->count - 3)
		return -EINVAL;
	autoclose int in = memory_file(nth_answer(c, op->args[1].i)), out = memory_file("");
	if (in < 0 || out < 0)
		return in < 0 ? in : out;
	pid_t pid = clone_process(0, &pidfd);
	if (pid == 0)
		hook_child(op, in, out);
	if (pid < 0)
		return -errno;
	autoclose int watched = pidfd;
	struct pollfd p = { .fd = watched, .events = POLLIN };
	int limit = op->args[2].i ? (int)op->args[2].i : -1, n;
	while ((n = poll(&p, 1, limit)) < 0 && errno == EINTR)
		;
	if (n == 0) {
		kill(-pid, SIGKILL);
		kill(pid, SIGKILL);
	}
	waitpid(pid, &status, 0);
	if (n == 0)
		describe_hook(c, "it did not end within %d ms and was killed", limit, out);
	else if (WIFSIGNALED(status))
		describe_hook(c, "it was ended by signal %d", WTERMSIG(status), out);
	else if (WEXITSTATUS(status))
		describe_hook(c, "it ended with exit status %d", WEXITSTATUS(status), out);
	else
		return 0;
	return n == 0 ? -ETIMEDOUT : -ECANCELED;
}

/* ---- namespaces ---- */

static int op_nsfd(struct child *c, struct op *op)
{
	int fd = kept_fd(c, op->args[0].i), flags = (int)op->args[1].i;
	if (fd < 0)
		return fd;
	c->inside |= (flags & CLONE_NEWNS) != 0;
	if (flags & CLONE_NEWUSER)
		open_streams();
	if (setns(fd, flags) < 0)
		return -errno;
	return flags & CLONE_NEWUSER ? become_root() : 0;
}

static int op_dumpable(struct child *c, struct op *op)
{
	(void)c;
	return result(prctl(PR_SET_DUMPABLE, (unsigned long)op->args[0].i, 0, 0, 0));
}

/* ---- mounts ---- */

static int op_tree(struct child *c, struct op *op)
{
	autoclose int source = path_open(c, op->args[1].s, O_PATH, 0);
	return source < 0 ? source : keep_fd(c, op->args[0].i, clone_tree(source, op->args[2].i & 1));
}

static int op_pick(struct child *c, struct op *op)
{
	return keep_fd(c, op->args[0].i, path_open(c, op->args[1].s, O_PATH, 0));
}

/* ATTR number set clear propagation flags. flags: 1 recursive, 2 id-mapped by the kept user namespace. */
static int op_attr(struct child *c, struct op *op)
{
	struct arg *a = op->args;
	int fd = kept_fd(c, a[0].i), recursive = a[4].i & 1 ? AT_RECURSIVE : 0;
	struct mount_attr attr = { .attr_set = a[1].i, .attr_clr = a[2].i, .propagation = a[3].i };
	if (a[4].i & 2) {
		if (c->userns < 0)
			return -EBADF;
		attr.attr_set |= MOUNT_ATTR_IDMAP;
		attr.userns_fd = (uint64_t)c->userns;
	}
	return fd < 0 ? fd : result(syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | recursive, &attr, sizeof attr));
}

static int op_attach(struct child *c, struct op *op)
{
	int tree = kept_fd(c, op->args[0].i);
	autoclose int target = tree < 0 ? -1 : open_target(c, op->args[1].s);
	return tree < 0 ? tree : target < 0 ? target : move_tree(tree, target);
}

/* The contents of a directory into another one, by the two halves of the file transfer. */
static int op_copyup(struct child *c, struct op *op)
{
	int fds[2], status, failed = 0, source = kept_fd(c, op->args[0].i);
	autoclose int target = source < 0 ? -1 : path_open(c, op->args[1].s, O_PATH | O_DIRECTORY, 0);
	if (source < 0 || target < 0)
		return source < 0 ? source : target;
	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	pid_t getter = clone_process(0, NULL);
	if (getter == 0) {
		dup2(fds[1], 1);
		close(fds[0]);
		_exit(fchdir(source) < 0 ? 1 : tar_get("./.", false));
	}
	pid_t putter = getter < 0 ? -1 : clone_process(0, NULL);
	if (putter == 0) {
		dup2(fds[0], 0);
		close(fds[1]);
		_exit(fchdir(target) < 0 ? 1 : tar_put("."));
	}
	close(fds[0]);
	close(fds[1]);
	if (getter < 0 || putter < 0)
		failed = EAGAIN;
	if (getter > 0)
		failed |= waitpid(getter, &status, 0) < 0 || status ? EIO : 0;
	if (putter > 0)
		failed |= waitpid(putter, &status, 0) < 0 || status ? EIO : 0;
	return failed ? -EIO : 0;
}

/* Where pivot_root(2) is impossible (an initial ramfs). */
static int op_move(struct child *c, struct op *op)
{
	(void)op;
	autoclose int top = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (c->root < 0 || top < 0)
		return -EBADF;
	int rc = move_tree(c->root, top);
	if (rc < 0)
		return rc;
	if (fchdir(c->root) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return -errno;
	c->inside = true;
	return 0;
}

/* ---- the process ---- */

/* Made when missing. A working directory that is not below the root directory would be a way out of it. */
static int op_cwd(struct child *c, struct op *op)
{
	char now[4096];
	autoclose int fd = path_make(c, op->args[0].s, true, 0755);
	if (fd < 0 || fchdir(fd) < 0)
		return fd < 0 ? fd : -errno;
	if (syscall(SYS_getcwd, now, sizeof now) < 0)
		return -errno;
	if (now[0] == '/')
		return 0;
	c->detail = "the directory is outside of the container's root directory";
	return -EPERM;
}

static int op_lookup(struct child *c, struct op *op)
{
	char *name = op->args[0].s;
	struct stat st;
	if (!*name)
		return -ENOENT;
	if (!strchr(name, '/'))
		return find_program(c, name, op->args[1].s, &c->program);
	if (stat(name, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EACCES; /* as execve(2) says it, for a directory too: engines look for this text */
	return result(access(name, X_OK)); /* by the oldest call: filters of users do not know faccessat2 */
}

static int op_ready(struct child *c, struct op *op)
{
	(void)op;
	return ready_to_exec(c);
}

static int op_domain(struct child *c, struct op *op)
{
	(void)c;
	return result(setdomainname(op->args[0].s, op->args[0].n));
}

static int op_personality(struct child *c, struct op *op)
{
	(void)c;
	return result(personality(op->args[0].i));
}

/* SCHED policy flags nice priority runtime deadline period: struct sched_attr, sched_setattr(2) */
static int op_sched(struct child *c, struct op *op)
{
	(void)c;
	struct arg *a = op->args;
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} attr = { sizeof attr, (uint32_t)a[0].i, a[1].i, (int32_t)a[2].i, (uint32_t)a[3].i, a[4].i, a[5].i, a[6].i };
	return result(syscall(SYS_sched_setattr, 0, &attr, 0));
}

static int op_ioprio(struct child *c, struct op *op)
{
	(void)c;
	return result(syscall(SYS_ioprio_set, 1 /* IOPRIO_WHO_PROCESS */, 0, (int)op->args[0].i));
}

static int op_affinity(struct child *c, struct op *op)
{
	(void)c;
	return result(syscall(SYS_sched_setaffinity, 0, (size_t)op->args[0].n, op->args[0].s));
}

/* Where there are no keyrings, none is shared either. */
static int op_keyring(struct child *c, struct op *op)
{
	(void)c;
	int rc = result(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, op->args[0].s));
	return rc == -ENOSYS || rc == -EDQUOT ? 0 : rc < 0 ? rc : 0;
}

int (*const run_table[OP_END])(struct child *, struct op *) = {
	[OP_SYNC] = op_sync, [OP_HOOK] = op_hook, [OP_START] = op_start, [OP_NSFD] = op_nsfd, [OP_TREE] = op_tree, [OP_PICK] = op_pick,
	[OP_ATTR] = op_attr, [OP_ATTACH] = op_attach, [OP_COPYUP] = op_copyup, [OP_CWD] = op_cwd, [OP_LOOKUP] = op_lookup,
	[OP_READY] = op_ready, [OP_MOVE] = op_move, [OP_DOMAIN] = op_domain, [OP_PERSONALITY] = op_personality, [OP_SCHED] = op_sched,
	[OP_IOPRIO] = op_ioprio, [OP_KEYRING] = op_keyring, [OP_DUMPABLE] = op_dumpable,
	[OP_AFFINITY] = op_affinity,
};

/* ---- the role ---- */

/* run STATUS RECORD PASSED [KEPT ...]: descriptor numbers; PASSED descriptors from 3 on belong to the container. */
int run_main(int argc, char **argv)
{
	struct child c = { .root = -1, .userns = -1, .channel = -1 };
	struct stat st;
	struct spawn s;
	struct failure f;
	int record = atoi(argv[1]), passed = atoi(argv[2]);
	reset_signals();
	setsid();
	umask(0);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* nobody in a namespace that is joined may look into this process */
	c.status = fcntl(atoi(argv[0]), F_DUPFD_CLOEXEC, PLACED_MAX + 1);
	if (c.status < 0 || fstat(record, &st) < 0 || passed < 0 || passed > PLACED_MAX - PLACED_MIN)
		return 2;
	for (int fd = PLACED_MIN; fd < PLACED_MIN + passed; fd++)
		c.placed[fd / 64] |= 1ull << fd % 64;
	for (int i = 3; i < argc; i++)
		if (keep_fd(&c, (uint64_t)i - 3, dup(atoi(argv[i]))) < 0)
			return 2;
	uint8_t *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, record, 0);
	if (data == MAP_FAILED || st.st_size < 1)
		return 2;
	c.flag = data;
	close_others(&c);
	if (!spawn_parse(data + 1, (size_t)st.st_size - 1, &s, &f)) {
		status_send(&c, STATUS_ERROR, &f, -1);
		return 127;
	}
	c.rows = s.rows;
	c.columns = s.columns;
	plan_run(&c, s.ops, s.count);
}
