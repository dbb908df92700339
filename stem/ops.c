/* The interpreter of plans: one function per operation, in a child of stem, until EXEC. Mounts are in mount.c, interfaces in
 * net.c, users in user.c. Nothing here returns to the loop. */
#include "stem.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <time.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* Puts fd at `number`, where it survives exec. */
int place_fd(struct child *c, int fd, uint64_t number)
{
	autoclose int from = fd;
	if (number < PLACED_MIN || number > PLACED_MAX)
		return -EBADF;
	if (fd == (int)number)
		take_fd(&from);
	else if (dup2(fd, (int)number) < 0)
		return -errno;
	if (fcntl((int)number, F_SETFD, 0) < 0)
		return -errno;
	c->placed[number / 64] |= 1ull << number % 64;
	return 0;
}

static int keep_root(struct child *c, int fd)
{
	if (fd < 0)
		return fd;
	close_fd(&c->root);
	c->root = fcntl(fd, F_DUPFD_CLOEXEC, PLACED_MAX + 1);
	close(fd);
	return c->root < 0 ? -errno : 0;
}

/* ---- files ---- */

static int op_mkdir(struct child *c, struct op *op)
{
	autoclose int fd = path_make(c, op->args[0].s, true, (mode_t)op->args[1].i);
	return fd < 0 ? fd : 0;
}

static int op_touch(struct child *c, struct op *op)
{
	autoclose int fd = path_make(c, op->args[0].s, false, (mode_t)op->args[1].i);
	return fd < 0 ? fd : 0;
}

static int op_symlink(struct child *c, struct op *op)
{
	autofree char *last = NULL;
	autoclose int dir = path_parent(c, op->args[1].s, &last);
	if (dir < 0)
		return dir;
	return symlinkat(op->args[0].s, dir, last) < 0 && errno != EEXIST ? -errno : 0;
}

static int op_mknod(struct child *c, struct op *op)
{
	autofree char *last = NULL;
	autoclose int dir = path_parent(c, op->args[0].s, &last);
	if (dir < 0)
		return dir;
	return mknodat(dir, last, (mode_t)op->args[1].i, op->args[2].i) < 0 && errno != EEXIST ? -errno : 0;
}

static int op_chown(struct child *c, struct op *op)
{
	autofree char *last = NULL;
	autoclose int dir = path_parent(c, op->args[0].s, &last);
	if (dir < 0)
		return dir;
	return result(fchownat(dir, last, (uid_t)op->args[1].i, (gid_t)op->args[2].i, AT_SYMLINK_NOFOLLOW));
}

static int op_write(struct child *c, struct op *op)
{
	struct arg *a = op->args;
	bool create = a[2].i & 1, optional = a[2].i & 2;
	autoclose int fd = path_open(c, a[0].s, O_WRONLY | O_NOCTTY | (create ? O_CREAT | O_TRUNC : 0), create ? 0644 : 0);
	int rc = fd < 0 ? fd : 0;
	struct statfs fs;
	if (!rc && a[2].i & 4 && (fstatfs(fd, &fs) < 0 || fs.f_type != PROC_SUPER_MAGIC)) {
		c->detail = "it is not a file of the kernel's process file system";
		rc = -EXDEV;
	}
	for (size_t done = 0; !rc && done < a[1].n;) {
		ssize_t n = write(fd, a[1].s + done, a[1].n - done);
		if (n < 0 && errno != EINTR)
			rc = -errno;
		else if (n > 0)
			done += (size_t)n;
	}
	return optional ? 0 : rc;
}

static int op_open(struct child *c, struct op *op)
{
	int flags = (int)op->args[1].i;
	int fd = path_open(c, op->args[0].s, flags, flags & (O_CREAT | O_TMPFILE) ? 0600 : 0);
	return fd < 0 ? fd : place_fd(c, fd, op->args[2].i);
}

static int op_root(struct child *c, struct op *op)
{
	return keep_root(c, path_open(c, op->args[0].s, O_PATH | O_DIRECTORY, 0));
}

static int op_chroot(struct child *c, struct op *op)
{
	autoclose int fd = path_open(c, op->args[0].s, O_PATH | O_DIRECTORY, 0);
	if (fd < 0)
		return fd;
	if (fchdir(fd) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return -errno;
	c->inside = true;
	return keep_root(c, open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
}

static int op_chdir(struct child *c, struct op *op)
{
	autoclose int fd = path_open(c, op->args[0].s, O_PATH | O_DIRECTORY, 0);
	return fd < 0 ? fd : result(fchdir(fd));
}

/* ---- namespaces and processes ---- */

/* A new mount namespace is a copy, and only the working directory moves into it: the descriptor of ROOT would stay behind in
 * the old one, where nothing can be mounted from here. So it travels as the working directory. */
static int stow_root(struct child *c, uint64_t flags, char cwd[4096])
{
	if (!(flags & CLONE_NEWNS) || c->root < 0)
		return 0;
	return getcwd(cwd, 4096) && fchdir(c->root) == 0 ? 1 : -errno;
}

static int unstow_root(struct child *c, int stowed, const char *cwd)
{
	if (!stowed)
		return 0;
	int rc = keep_root(c, result(open(".", O_PATH | O_DIRECTORY | O_CLOEXEC)));
	if (rc >= 0 && chdir(cwd) < 0 && errno != EACCES)
		return -errno;
	return rc < 0 ? rc : 0; /* where the new identity may not go, the root directory stays the working directory */
}

static int op_unshare(struct child *c, struct op *op)
{
	char cwd[4096];
	int stowed = stow_root(c, op->args[0].i, cwd);
	if (stowed < 0 || unshare((int)op->args[0].i) < 0)
		return stowed < 0 ? stowed : -errno;
	return unstow_root(c, stowed, cwd);
}

/* Inside a user namespace just entered; that of an ordinary user may forbid setgroups(2). */
int become_root(void)
{
	if ((setgroups(0, NULL) < 0 && errno != EPERM) || syscall(SYS_setresgid, 0, 0, 0) < 0 || syscall(SYS_setresuid, 0, 0, 0) < 0)
		return -errno;
	return 0;
}

static int op_setns(struct child *c, struct op *op)
{
	autoclose int fd = path_open(c, op->args[0].s, O_RDONLY, 0);
	if (fd < 0)
		return fd;
	c->inside |= (op->args[1].i & CLONE_NEWNS) || !op->args[1].i;
	return result(setns(fd, (int)op->args[1].i));
}

/* Pipes are opened again by name (/dev/stderr). Root of another user namespace does not own ours, and USER may not change that. */
void open_streams(void)
{
	for (int fd = 0; fd < 3; fd++) {
		struct stat st;
		if (fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode))
			fchmod(fd, 0666);
	}
}

static int op_join(struct child *c, struct op *op)
{
	struct proc *p = proc_find((uint32_t)op->args[0].i);
	if (!p || p->pidfd < 0)
		return -ESRCH;
	c->inside |= (op->args[1].i & CLONE_NEWNS) != 0;
	if (op->args[1].i & CLONE_NEWUSER)
		open_streams();
	if (setns(p->pidfd, (int)op->args[1].i) < 0)
		return -errno;
	int rc = op->args[1].i & CLONE_NEWUSER ? become_root() : 0;
	/* Who lives in there sees this process from now on, and must not get hold of stem's program through /proc/PID/exe. */
	return rc < 0 ? rc : result(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
}

/* Stem may have died before the signal was armed: then its end of the status socket is closed. */
static int arm_death(const struct child *c)
{
	struct pollfd p = { .fd = c->status };
	if (c->death && prctl(PR_SET_PDEATHSIG, (unsigned long)c->death, 0, 0, 0) < 0)
		return -errno;
	if (c->death && poll(&p, 1, 0) > 0 && p.revents & POLLHUP)
		_exit(127);
	return 0;
}

static int op_clone(struct child *c, struct op *op)
{
	char cwd[4096];
	int stowed = stow_root(c, op->args[0].i, cwd);
	if (stowed < 0)
		return stowed;
	status_send(c, STATUS_CLONING, NULL, -1);
	pid_t pid = clone_process(op->args[0].i | CLONE_PARENT, NULL);
	if (pid < 0)
		return -errno;
	if (pid > 0)
		_exit(0);
	status_send(c, STATUS_CLONED, NULL, -1); /* stem learns the pid from the kernel's sender credentials */
	setsid();
	int rc = unstow_root(c, stowed, cwd);
	return rc < 0 ? rc : arm_death(c); /* which is not inherited */
}

static int op_enter(struct child *c, struct op *op)
{
	(void)op;
	if (c->userns < 0)
		return -EBADF;
	open_streams();
	return setns(c->userns, CLONE_NEWUSER) < 0 ? -errno : become_root();
}

static int op_death(struct child *c, struct op *op)
{
	c->death = op->args[0].i;
	return arm_death(c);
}

/* ---- the process itself ---- */

static int op_hostname(struct child *c, struct op *op)
{
	(void)c;
	return result(sethostname(op->args[0].s, op->args[0].n));
}

static int op_rlimit(struct child *c, struct op *op)
{
	(void)c;
	struct rlimit now, want = { op->args[1].i, op->args[2].i };
	__rlimit_resource_t which = (__rlimit_resource_t)op->args[0].i;
	if (setrlimit(which, &want) == 0)
		return 0;
	if (errno != EPERM || getrlimit(which, &now) < 0)
		return -errno;
	if (want.rlim_max > now.rlim_max)
		want.rlim_max = now.rlim_max;
	if (want.rlim_cur > want.rlim_max)
		want.rlim_cur = want.rlim_max;
	return result(setrlimit(which, &want));
}

static int op_bound(struct child *c, struct op *op)
{
	(void)c;
	for (unsigned cap = 0; cap < 64; cap++) {
		int present = prctl(PR_CAPBSET_READ, cap, 0, 0, 0);
		if (present < 0)
			break;
		if (present && !(op->args[0].i >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
			return -errno;
	}
	return 0;
}

static int op_caps(struct child *c, struct op *op)
{
	(void)c;
	struct arg *a = op->args;
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	for (int i = 0; i < 2; i++)
		data[i] = (struct __user_cap_data_struct){ (uint32_t)(a[0].i >> 32 * i), (uint32_t)(a[1].i >> 32 * i),
							   (uint32_t)(a[2].i >> 32 * i) };
	if (syscall(SYS_capset, &head, data) < 0 || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return -errno;
	for (unsigned long cap = 0; cap < 64; cap++)
		if (a[3].i >> cap & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
			return -errno;
	return 0;
}

static int op_nnp(struct child *c, struct op *op)
{
	(void)c, (void)op;
	return result(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static int op_seccomp(struct child *c, struct op *op)
{
	struct sock_fprog program = { (unsigned short)(op->args[0].n / sizeof(struct sock_filter)), (void *)op->args[0].s };
	if (op->args[0].n % sizeof(struct sock_filter) || op->args[0].n / sizeof(struct sock_filter) > BPF_MAXINSNS)
		return -EINVAL;
	int listener = op->args[1].i & SECCOMP_FILTER_FLAG_NEW_LISTENER ? dup(c->status) : -1;
	if (listener >= 0) { /* the lowest free number is the one that the kernel will take next */
		close(listener);
		status_send(c, STATUS_LISTENER, &(struct failure){ .index = (uint32_t)listener }, -1);
	}
	int rc = result(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, (unsigned)op->args[1].i, &program));
	return rc < 0 || listener < 0 ? rc : listener_handed_over(c, rc);
}

static int op_umask(struct child *c, struct op *op)
{
	umask((mode_t)op->args[0].i);
	c->umask_set = true;
	return 0;
}

static int op_setuid(struct child *c, struct op *op)
{
	(void)c;
	uint32_t uid = (uint32_t)op->args[0].i, gid = (uint32_t)op->args[1].i;
	if (setgroups(0, NULL) < 0 || syscall(SYS_setresgid, gid, gid, gid) < 0 || syscall(SYS_setresuid, uid, uid, uid) < 0)
		return -errno;
	return 0;
}

static int op_time(struct child *c, struct op *op)
{
	(void)c;
	struct timespec t = { (time_t)(op->args[0].i / NS_PER_S), (long)(op->args[0].i % NS_PER_S) };
	return result(clock_settime(CLOCK_REALTIME, &t));
}

/* ---- descriptors ---- */

/* What the terminal is bound over. Not through a link of the image: what it means is decided later (masks, read-only paths). */
static int console_target(const struct child *c, const char *path)
{
	struct stat st;
	autofree char *last = NULL;
	autoclose int dir = path_parent(c, path, &last);
	if (dir < 0)
		return dir;
	autoclose int made = openat(dir, last, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0600);
	autoclose int fd = made < 0 && errno != EEXIST ? -1 : openat(dir, last, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	return S_ISLNK(st.st_mode) || S_ISDIR(st.st_mode) ? -ELOOP : take_fd(&fd);
}

static int op_tty(struct child *c, struct op *op)
{
	struct winsize size = { .ws_row = c->rows ? c->rows : 24, .ws_col = c->columns ? c->columns : 80 };
	int unlock = 0;
	autoclose int master = path_open(c, op->args[0].s, O_RDWR | O_NOCTTY, 0);
	if (master < 0)
		return master;
	if (ioctl(master, TIOCSPTLCK, &unlock) < 0)
		return -errno;
	autoclose int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0 || ioctl(master, TIOCSWINSZ, &size) < 0 || ioctl(slave, TIOCSCTTY, 0) < 0)
		return -errno;
	if (*op->args[1].s) {
		autoclose int console = console_target(c, op->args[1].s);
		int rc = console < 0 ? console : bind_fd(slave, console);
		if (rc < 0)
			return rc;
	}
	for (int fd = 0; fd < 3; fd++)
		if (dup2(slave, fd) < 0)
			return -errno;
	status_send(c, STATUS_TTY, NULL, master);
	return 0;
}

static int op_tap(struct child *c, struct op *op)
{
	struct ifreq r = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	autoclose int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (op->args[0].n >= sizeof r.ifr_name)
		return -ENAMETOOLONG;
	strcpy(r.ifr_name, op->args[0].s);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &r) < 0)
		return -errno;
	return place_fd(c, take_fd(&fd), op->args[1].i);
}

static int op_listen(struct child *c, struct op *op)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	autofree char *last = NULL;
	autoclose int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), dir = path_parent(c, op->args[0].s, &last);
	autoclose int cwd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (s < 0 || dir < 0 || cwd < 0)
		return dir < 0 ? dir : -errno;
	if (strlen(last) >= sizeof address.sun_path)
		return -ENAMETOOLONG;
	strcpy(address.sun_path, last); /* relative to its directory: the limit of 108 bytes is for the whole path otherwise */
	unlinkat(dir, last, 0);
	mode_t mask = umask(0177);
	int rc = fchdir(dir) < 0 || bind(s, (struct sockaddr *)&address, sizeof address) < 0 || listen(s, 16) < 0 ? -errno : 0;
	umask(mask);
	if (fchdir(cwd) < 0)
		return -errno;
	close_fd(&dir); /* before the number that was asked for may turn out to be one of these */
	close_fd(&cwd);
	return rc < 0 ? rc : place_fd(c, take_fd(&s), op->args[1].i);
}

static int op_channel(struct child *c, struct op *op)
{
	return c->channel < 0 ? -EBADF : place_fd(c, take_fd(&c->channel), op->args[0].i);
}

/* ---- the last operation ---- */

static int op_init(struct child *c, struct op *op)
{
	c->init = op->args[0].i + 1;
	return kept_fd(c, op->args[0].i) < 0 ? -EBADF : 0;
}

/* What stays behind as the init of what EXEC starts: stem's own program, from a mount that nobody can write to. */
static _Noreturn void become_init(struct child *c, pid_t child, char **env)
{
	char number[16], *argv[] = { (char *)INIT_NAME, number, NULL };
	snprintf(number, sizeof number, "%d", child);
	syscall(SYS_close_range, PLACED_MIN, PLACED_MAX, 0);
	syscall(SYS_execveat, kept_fd(c, c->init - 1), "", argv, env, AT_EMPTY_PATH);
	kill(child, SIGKILL);
	_exit(127);
}

/* Signals wait until the new init takes them. The child leads a process group of its own, in front of the terminal if there is one. */
static int split_off_init(struct child *c, char **env)
{
	sigset_t all, none;
	sigfillset(&all);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &all, NULL);
	if (getpid() != 1 && prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
		return -errno;
	int rc = arm_death(c);
	pid_t pid = rc < 0 ? -1 : fork(); /* not clone3, which the filter that is in force by now may refuse */
	if (pid < 0)
		return rc < 0 ? rc : -errno;
	if (pid > 0)
		become_init(c, pid, env);
	setpgid(0, 0);
	tcsetpgrp(0, getpid());
	sigprocmask(SIG_SETMASK, &none, NULL);
	return 0;
}

int ready_to_exec(struct child *c)
{
	if (!c->umask_set)
		umask(022);
	int rc = arm_death(c); /* again: a change of uid has cleared it */
	c->ready = true;
	close_fd(&c->userns);
	close_fd(&c->channel);
	for (uint32_t k = 0; k < c->kept_count; k++)
		close_fd(&c->kept[k]);
	for (struct proc *p = procs; p; p = p->next)
		p->pidfd = -1;
	close_others(c);
	status_send(c, STATUS_EXEC, NULL, box.role == ROLE_HOST ? c->root : -1);
	close_fd(&c->root);
	return rc;
}

static const char *lookup(char **env, const char *name)
{
	size_t n = strlen(name);
	for (; *env; env++)
		if (!strncmp(*env, name, n) && (*env)[n] == '=')
			return *env + n + 1;
	return NULL;
}

static int exec_path(struct child *c, const char *path, char **argv, char **env)
{
	execve(path, argv, env);
	int error = errno;
	if (error == ENOENT && access(path, F_OK) == 0)
		c->detail = "its interpreter (dynamic loader, or the program after #!) does not exist";
	return -error;
}

/* The file that a name without a slash means. As the present user would execute it. */
int find_program(struct child *c, const char *name, const char *path, char **found)
{
	char file[4096];
	struct stat st;
	int rc = -ENOENT;
	for (const char *end; path; path = *end ? end + 1 : NULL) {
		end = path + strcspn(path, ":");
		int n = snprintf(file, sizeof file, "%.*s%s%s", (int)(end - path), path, end > path ? "/" : "", name);
		if (n >= (int)sizeof file || stat(file, &st) < 0)
			continue;
		if (S_ISREG(st.st_mode) && access(file, X_OK) == 0)
			return (*found = strdup(file)) ? 0 : -ENOMEM;
		rc = -EACCES;
	}
	if (rc == -ENOENT)
		c->detail = "executable file not found in $PATH";
	return rc;
}

static int exec_search(struct child *c, char **argv, char **env)
{
	char file[4096];
	const char *path = lookup(env, "PATH") ?: DEFAULT_PATH;
	int found = -ENOENT;
	for (const char *end; path; path = *end ? end + 1 : NULL) {
		end = path + strcspn(path, ":");
		int n = snprintf(file, sizeof file, "%.*s%s%s", (int)(end - path), path, end > path ? "/" : "", argv[0]);
		if (n >= (int)sizeof file)
			continue;
		int rc = exec_path(c, file, argv, env);
		if (c->detail || (rc != -ENOENT && rc != -ENOTDIR && rc != -EACCES && rc != -ELOOP && rc != -ENAMETOOLONG))
			return rc;
		if (rc == -EACCES)
			found = rc;
	}
	if (found == -ENOENT)
		c->detail = "not found in PATH";
	return found;
}

static int op_exec(struct child *c, struct op *op)
{
	size_t argc = op->args[0].i, envc = op->count - 1 - argc, used = 0;
	char **argv = calloc(argc + 1, sizeof *argv), **env = calloc(envc + 2, sizeof *env);
	if (!argv || !env)
		return -ENOMEM;
	for (size_t i = 0; i < argc; i++)
		argv[i] = op->args[1 + i].s;
	for (size_t i = 0; i < envc; i++)
		env[used++] = op->args[1 + argc + i].s;
	if (c->home && !lookup(env, "HOME") && asprintf(&env[used], "HOME=%s", c->home) < 0)
		return -ENOMEM;
	int rc = c->init ? split_off_init(c, env) : 0;
	if (!rc && !c->ready)
		rc = ready_to_exec(c);
	if (rc < 0)
		return rc;
	if (!*argv[0])
		return -ENOENT;
	if (c->program)
		return exec_path(c, c->program, argv, env);
	return strchr(argv[0], '/') ? exec_path(c, argv[0], argv, env) : exec_search(c, argv, env);
}

static int op_builtin(struct child *c, struct op *op)
{
	int rc = ready_to_exec(c);
	if (rc < 0)
		return rc;
	close_fd(&c->status);
	builtin_run((int)op->args[0].i, op->args + 1);
}

static int (*const table[OP_END])(struct child *, struct op *) = {
	[OP_MOUNT] = op_mount, [OP_IMAGE] = op_image, [OP_BIND] = op_bind, [OP_MKDIR] = op_mkdir, [OP_TOUCH] = op_touch,
	[OP_SYMLINK] = op_symlink, [OP_MKNOD] = op_mknod, [OP_WRITE] = op_write, [OP_UNSHARE] = op_unshare, [OP_SETNS] = op_setns,
	[OP_JOIN] = op_join, [OP_CLONE] = op_clone, [OP_ROOT] = op_root, [OP_PIVOT] = op_pivot, [OP_CHROOT] = op_chroot,
	[OP_CHDIR] = op_chdir, [OP_HOSTNAME] = op_hostname, [OP_LINK] = op_link, [OP_ADDRESS] = op_address, [OP_ROUTE] = op_route,
	[OP_RLIMIT] = op_rlimit, [OP_BOUND] = op_bound, [OP_USER] = op_user, [OP_CAPS] = op_caps, [OP_NNP] = op_nnp,
	[OP_SECCOMP] = op_seccomp, [OP_MASK] = op_mask, [OP_READONLY] = op_readonly, [OP_TTY] = op_tty, [OP_USERNS] = op_userns,
	[OP_IDMAP] = op_idmap, [OP_ENTER] = op_enter, [OP_DEATH] = op_death, [OP_OPEN] = op_open, [OP_TAP] = op_tap,
	[OP_LISTEN] = op_listen, [OP_CHANNEL] = op_channel, [OP_UMASK] = op_umask, [OP_SETUID] = op_setuid, [OP_CHOWN] = op_chown,
	[OP_TIME] = op_time, [OP_EXEC] = op_exec, [OP_BUILTIN] = op_builtin, [OP_IDENTITY] = op_identity,
	[OP_INIT] = op_init,
};

static _Noreturn void plan_failed(struct child *c, const struct op *op, int error)
{
	char what[300];
	struct failure f;
	op_describe(op, what, sizeof what);
	fail_with(&f, c->index, error, "%s: %s", what, c->detail ? c->detail : strerror(error));
	if (c->status < 0) /* whoever started this is gone: its output is all that is left */
		dprintf(2, "%s\n", f.text);
	status_send(c, STATUS_ERROR, &f, -1);
	_exit(127);
}

_Noreturn void plan_run(struct child *c, struct reader ops, uint32_t count)
{
	for (c->index = 0; c->index < count; c->index++) {
		struct op op;
		if (!op_next(&ops, &op))
			_exit(127);
		int (*run)(struct child *, struct op *) = table[op.code] ?: run_table[op.code];
		int rc = run(c, &op);
		if (rc < 0)
			plan_failed(c, &op, -rc);
	}
	_exit(127); /* not reached: the last operation is EXEC or BUILTIN */
}
