/* Roles and their beginnings: the daemon on the host, PID 1 of a guest. */
#include "stem.h"

#include <dirent.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

#define PORT_NAME "nacre.0"
#define PORT_WAIT_MS 10000
#define REOPEN_NS (20 * 1000000ull)

static int null_streams(void)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	for (int i = 0; i < 3; i++)
		if (fd != i)
			dup2(fd, i);
		else
			fcntl(fd, F_SETFD, 0);
	if (fd > 2)
		close(fd);
	return 0;
}

/* ---- host and relay ---- */

static int listen_here(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "stem.sock" };
	autoclose int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s < 0)
		return -errno;
	unlink("stem.sock");
	umask(0177);
	int rc = bind(s, (struct sockaddr *)&address, sizeof address) < 0 || listen(s, 128) < 0 ? -errno : 0;
	umask(022);
	return rc < 0 ? rc : take_fd(&s);
}

static int write_pid(pid_t pid)
{
	char text[16];
	int n = snprintf(text, sizeof text, "%d\n", pid);
	autoclose int fd = open("stem.pid", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
	return fd < 0 || write(fd, text, (size_t)n) != n ? -errno : 0;
}

static int die(const char *what, int error)
{
	dprintf(2, "stem: %s: %s\n", what, strerror(error));
	return 1;
}

/* The daemon's last act: unless somebody is there who has promised to, COMMAND cleans up. */
static void hand_over(void)
{
	bool custody = custody_held();
	unlink("stem.sock");
	unlink("stem.pid");
	if (!box.command || custody)
		return;
	pid_t pid = clone_process(0, NULL);
	if (pid != 0)
		return;
	reset_signals();
	setsid();
	if (chdir("/") == 0)
		execvp(box.command[0], box.command);
	_exit(127);
}

/* The end of a container should not wait for its disk: an overlay that loses its last user writes back the file system below it, which
 * takes milliseconds, or seconds on a busy disk. So stem is that last user, and only when it has hung up and given up every lock, it
 * lets go of it. `last` tells who wants to use what is below again. */
static void let_go(void)
{
	if (box.root < 0)
		return;
	dup2(box.root, 0);
	if (box.last >= 0)
		dup2(box.last, 1);
	syscall(SYS_close_range, 3u, ~0u, 0u);
	close(0);
}

static int daemon_main(int listener)
{
	null_streams();
	syscall(SYS_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */);
	loop_init();
	signals_init();
	box.listener = (struct watch){ .fd = listener, .ready = on_accept };
	if (watch_set(&box.listener, EPOLLIN) < 0 || (box.role == ROLE_RELAY && !relay_init(-1)))
		return 1;
	loop_run();
	hand_over();
	let_go();
	return 0;
}

/* openat2 is from Linux 5.6, close_range from 5.9, mount_setattr from 5.12: the last one stands for all. */
static bool kernel_fits(void)
{
	return syscall(SYS_mount_setattr, -1, "", 0u, NULL, (size_t)0) == 0 || errno != ENOSYS;
}

/* Returns in the first process once the daemon is reachable. */
static int start_daemon(const char *dir, char **command)
{
	box.command = command;
	if (!kernel_fits())
		return die("this kernel is too old, Linux 5.12 is needed: mount_setattr", ENOSYS);
	if (chdir(dir) < 0)
		return die(dir, errno);
	int listener = listen_here();
	if (listener < 0)
		return die("stem.sock", -listener);
	pid_t pid = fork();
	if (pid < 0)
		return die("fork", errno);
	if (pid == 0) {
		setsid();
		_exit(daemon_main(listener));
	}
	int rc = write_pid(pid);
	if (rc < 0) {
		kill(pid, SIGKILL);
		return die("stem.pid", -rc);
	}
	return 0;
}

/* ---- guest ---- */

/* Stages go to the kernel log (notice: shown without `quiet`), failures always to the console. */
__attribute__((format(printf, 2, 3))) static void say(bool fatal, const char *format, ...)
{
	char line[400];
	va_list ap;
	if (!box.is_init)
		return;
	int n = snprintf(line, sizeof line, "<%d>stem: ", fatal ? 2 : 5);
	va_start(ap, format);
	n += vsnprintf(line + n, sizeof line - (size_t)n - 1, format, ap);
	va_end(ap);
	if (n > (int)sizeof line - 2)
		n = sizeof line - 2;
	line[n++] = '\n';
	autoclose int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (write(fd >= 0 ? fd : 2, line, (size_t)n) < 0)
		return;
}

void guest_reboot(void)
{
	if (!box.is_init)
		_exit(0);
	kill(-1, SIGKILL);
	sync();
	for (int waited = 0; waited < 2000; waited++) { /* D state aside, this is over at once */
		struct timespec ms = { .tv_nsec = 1000000 };
		pid_t pid = waitpid(-1, NULL, WNOHANG);
		if (pid < 0)
			break;
		if (pid == 0)
			nanosleep(&ms, NULL);
	}
	sync();
	reboot(RB_AUTOBOOT);
	_exit(1);
}

static void mount_here(const char *type, const char *where, unsigned long flags, const char *data)
{
	mkdir(where, 0755);
	if (mount(type, where, type, flags, data) < 0 && errno != EBUSY)
		say(true, "mount %s on %s: %s", type, where, strerror(errno));
}

static void enable_controllers(void)
{
	char names[512];
	int n = file_read("/sys/fs/cgroup/cgroup.controllers", names, sizeof names - 1);
	autoclose int fd = open("/sys/fs/cgroup/cgroup.subtree_control", O_WRONLY | O_CLOEXEC);
	if (n <= 0 || fd < 0)
		return;
	names[n] = 0;
	for (char *name = strtok(names, " \n"); name; name = strtok(NULL, " \n"))
		if (dprintf(fd, "+%s", name) < 0)
			say(false, "cgroup controller %s: %s", name, strerror(errno));
}

/* The mount namespace of a guest starts on the initial ramfs, which cannot be the source of a pivot_root. A bind mount of it
 * over itself can, and every container's namespace is a copy of this one. */
static void make_pivotable(void)
{
	autoclose int fd = (int)syscall(SYS_open_tree, AT_FDCWD, "/", 1u /* OPEN_TREE_CLONE */ | O_CLOEXEC | 0x8000u /* AT_RECURSIVE */);
	if (fd < 0 || syscall(SYS_move_mount, fd, "", AT_FDCWD, "/", 4u /* MOVE_MOUNT_F_EMPTY_PATH */) < 0 || fchdir(fd) < 0 ||
	    chroot(".") < 0)
		say(true, "bind the root directory: %s", strerror(errno));
	mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

static void load_modules(void)
{
	static char order[16384];
	int n = file_read("/modules/order", order, sizeof order - 1), loaded = 0;
	char *rest = order, *name, path[300];
	if (n <= 0)
		return;
	order[n] = 0;
	while ((name = strsep(&rest, "\n"))) {
		if (!*name)
			continue;
		snprintf(path, sizeof path, "/modules/%s", name);
		autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);
		const char *suffix = strrchr(name, '.');
		unsigned flags = suffix && strcmp(suffix, ".ko") ? 4u /* MODULE_INIT_COMPRESSED_FILE */ : 0;
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", flags) < 0 && errno != EEXIST))
			say(true, "module %s: %s", name, strerror(errno));
		else
			loaded++;
		unlink(path); /* its memory is the guest's */
	}
	say(false, "%d modules loaded", loaded);
}

/* /dev/vportXpY of the port with our name, opened; -1 = not there (yet). */
static int find_port(void)
{
	char path[300], name[64];
	DIR *ports = opendir("/sys/class/virtio-ports");
	int fd = -1;
	for (struct dirent *d; ports && fd < 0 && (d = readdir(ports));) {
		snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", d->d_name);
		int n = d->d_name[0] == '.' ? -1 : file_read(path, name, sizeof name - 1);
		if (n <= 0)
			continue;
		name[n] = 0;
		name[strcspn(name, "\n")] = 0;
		snprintf(path, sizeof path, "/dev/%s", d->d_name);
		if (!strcmp(name, PORT_NAME))
			fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	}
	if (ports)
		closedir(ports);
	return fd;
}

static int await_port(void)
{
	struct timespec pause = { .tv_nsec = 2000000 };
	for (int waited = 0; waited < PORT_WAIT_MS; waited += 2) {
		int fd = find_port();
		if (fd >= 0)
			return fd;
		nanosleep(&pause, NULL);
	}
	return -1;
}

static void guest_boot(void)
{
	mount_here("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
	null_streams();
	mount_here("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_here("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_here("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
	say(false, "kernel file systems mounted");
	load_modules();
	mount_here("cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	/* Without this (Linux 6.0) whoever joins a group waits for RCU: 12 ms in an emulated machine. */
	mount("", "/sys/fs/cgroup", NULL, MS_REMOUNT | MS_NOSUID | MS_NODEV | MS_NOEXEC, "favordynmods");
	enable_controllers();
	make_pivotable();
	int rc = link_up("lo", 0);
	if (rc < 0)
		say(false, "loopback interface: %s", strerror(-rc));
}

static void send_ready(struct conn *c)
{
	struct utsname name;
	uint8_t out[8 + sizeof name.release + 8];
	uname(&name);
	uint32_t head[2] = { PROTOCOL_VERSION, (uint32_t)strlen(name.release) };
	uint64_t uptime = clock_ns(CLOCK_BOOTTIME);
	memcpy(out, head, 8);
	memcpy(out + 8, name.release, head[1]);
	memcpy(out + 8 + head[1], &uptime, 8);
	conn_send(c, FR_READY, 0, 0, 0, out, 8 + head[1] + 8);
}

static void reopen_port(struct timer *t);
static struct timer reopen_timer = { .fire = reopen_port };
static int hung_port = -1;

/* The other end of the port is gone (its relay died, or this guest was restored from a template and meets a new one). The
 * port stays; when somebody connects again, everything starts afresh with READY. */
void guest_channel_lost(void)
{
	struct conn *c = relay_channel();
	if (!box.is_init) {
		conn_drop(c);
		return stop_sandbox(true);
	}
	hung_port = fcntl(c->w.fd, F_DUPFD_CLOEXEC, 3);
	conn_drop(c);
	timer_set(&reopen_timer, REOPEN_NS);
}

static void reopen_port(struct timer *t)
{
	struct pollfd p = { .fd = hung_port, .events = POLLOUT };
	if (poll(&p, 1, 0) < 0 || p.revents & (POLLHUP | POLLERR) || !(p.revents & POLLOUT) || !relay_init(hung_port))
		return timer_set(t, REOPEN_NS);
	hung_port = -1;
	send_ready(relay_channel());
}

static _Noreturn void guest_main(int channel)
{
	box.role = ROLE_GUEST;
	loop_init();
	signals_init();
	if (box.is_init) {
		guest_boot();
		channel = await_port();
		if (channel < 0)
			say(true, "no virtio-serial port named " PORT_NAME " after %d s (virtio drivers missing?)", PORT_WAIT_MS / 1000);
	}
	if (channel < 0 || !relay_init(channel))
		guest_reboot();
	say(false, "ready");
	send_ready(relay_channel());
	loop_run();
	guest_reboot();
	_exit(1);
}

static int usage(void)
{
	static const char text[] = "usage: stem host|relay DIR [--last FD] [-- COMMAND ARG ...]\n";
	return write(2, text, sizeof text - 1) < 0 ? 1 : 2;
}

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
	/* Queues come and go; their memory goes back to the kernel. */
	mallopt(M_MMAP_THRESHOLD, 64 << 10);
	mallopt(M_TRIM_THRESHOLD, 64 << 10);
	if (argc == 2 && !strcmp(argv[0], INIT_NAME))
		init_main((pid_t)atoi(argv[1]));
	if (argc >= 3 && (!strcmp(argv[1], "host") || !strcmp(argv[1], "relay"))) {
		char **rest = argv + 3;
		if (argc > 4 && !strcmp(rest[0], "--last")) {
			box.last = atoi(rest[1]);
			rest += 2;
		}
		if (rest[0] && (strcmp(rest[0], "--") || !rest[1]))
			return usage();
		box.role = argv[1][0] == 'h' ? ROLE_HOST : ROLE_RELAY;
		return start_daemon(argv[2], rest[0] ? rest + 1 : NULL);
	}
	if (argc >= 5 && !strcmp(argv[1], "run"))
		return run_main(argc - 2, argv + 2);
	if (argc == 3 && !strcmp(argv[1], "guest-test")) { /* a guest without a machine, for tests */
		int channel = atoi(argv[2]);
		fcntl(channel, F_SETFL, O_RDWR | O_NONBLOCK);
		fcntl(channel, F_SETFD, FD_CLOEXEC);
		guest_main(channel);
	}
	if (getpid() == 1 || !strcmp(name, "init")) {
		box.is_init = true;
		guest_main(-1);
	}
	return usage();
}
