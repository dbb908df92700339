/* Operations on mounts and user namespaces. Runs in the child only. */
#include "stem.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>

/* mount(2) flags; <sys/mount.h> and <linux/mount.h> cannot be included together everywhere. */
#ifndef MS_RDONLY
#define MS_RDONLY 1
#define MS_NOSUID 2
#define MS_NODEV 4
#define MS_NOEXEC 8
#define MS_REMOUNT 32
#define MS_NOATIME 1024
#define MS_BIND 4096
#define MS_REC 16384
#define MS_PRIVATE (1 << 18)
#define MS_SLAVE (1 << 19)
#define MS_SHARED (1 << 20)
#define MS_RELATIME (1 << 21)
#define MS_STRICTATIME (1 << 24)
#endif
#define MNT_DETACH 2
#define NODE_WAIT_MS 5000

static int sys_mount(const char *source, const char *target, const char *type, uint64_t flags, const char *data)
{
	return result(syscall(SYS_mount, source, target, *type ? type : NULL, (unsigned long)flags, *data ? data : NULL));
}

bool same_file(int a, int b)
{
	struct stat x, y;
	return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Opens the target of a mount. An image whose /proc is a link to / must not get proc mounted over its root directory. */
int open_target(const struct child *c, const char *target)
{
	int fd = path_open(c, target, O_PATH, 0);
	if (fd >= 0 && in_root(target) && target[1 + strspn(target + 1, "/")] && same_file(fd, c->root)) {
		close(fd);
		return -ELOOP;
	}
	return fd;
}

/* mount(2) on an opened target. Before the root directory is the container's, /proc is one that we may trust and names the
 * descriptor; afterwards only directories can be named without it, as the working directory. */
static int mount_on(const struct child *c, const char *source, const char *target, const char *type, uint64_t flags, const char *data)
{
	char name[40];
	if (!in_root(target))
		return sys_mount(source, target, type, flags, data);
	autoclose int fd = open_target(c, target);
	if (fd < 0)
		return fd;
	if (!c->inside) {
		snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
		return sys_mount(source, name, type, flags, data);
	}
	autoclose int cwd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (cwd < 0 || fchdir(fd) < 0)
		return -errno;
	int rc = sys_mount(source, ".", type, flags, data);
	return fchdir(cwd) < 0 ? -errno : rc;
}

int op_mount(struct child *c, struct op *op)
{
	struct arg *a = op->args;
	return mount_on(c, a[0].s, a[1].s, a[2].s, a[3].i, a[4].s);
}

static void sleep_ms(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };
	nanosleep(&t, NULL);
}

/* A free loop device with the image in it, which it drops when its last user is gone. */
static int loop_attach(const char *image, bool read_only, char *name, size_t size)
{
	autoclose int file = open(image, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	autoclose int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	struct loop_config config = { .fd = (uint32_t)file };
	if (file < 0 || control < 0)
		return -errno;
	config.info.lo_flags = LO_FLAGS_AUTOCLEAR | (read_only ? LO_FLAGS_READ_ONLY : 0);
	for (int attempt = 0; attempt < 100; attempt++) {
		int number = ioctl(control, LOOP_CTL_GET_FREE);
		if (number < 0)
			return -errno;
		snprintf(name, size, "/dev/loop%d", number);
		autoclose int device = open(name, O_RDWR | O_CLOEXEC);
		if (device < 0 && errno == ENOENT && mknod(name, S_IFBLK | 0600, makedev(7, (unsigned)number)) == 0)
			device = open(name, O_RDWR | O_CLOEXEC);
		if (device >= 0 && ioctl(device, LOOP_CONFIGURE, &config) == 0)
			return take_fd(&device);
		if (errno != EBUSY && errno != ENXIO)
			return -errno;
	}
	return -EBUSY;
}

int op_image(struct child *c, struct op *op)
{
	struct arg *a = op->args;
	char device[32];
	for (int waited = 0; box.role == ROLE_GUEST && waited < NODE_WAIT_MS && access(a[0].s, F_OK) < 0; waited += 2)
		sleep_ms(2);
	int rc = mount_on(c, a[0].s, a[1].s, a[2].s, a[3].i, a[4].s);
	if (rc != -ENOTBLK)
		return rc;
	autoclose int loop = loop_attach(a[0].s, a[3].i & MS_RDONLY, device, sizeof device);
	if (loop < 0) {
		c->detail = "no loop device could be set up";
		return loop;
	}
	return mount_on(c, device, a[1].s, a[2].s, a[3].i, a[4].s);
}

static int set_attributes(int tree, uint64_t flags)
{
	struct mount_attr attr = { 0 };
	attr.attr_set = (flags & MS_RDONLY ? MOUNT_ATTR_RDONLY : 0) | (flags & MS_NOSUID ? MOUNT_ATTR_NOSUID : 0) |
			(flags & MS_NODEV ? MOUNT_ATTR_NODEV : 0) | (flags & MS_NOEXEC ? MOUNT_ATTR_NOEXEC : 0);
	if (flags & (MS_NOATIME | MS_RELATIME | MS_STRICTATIME)) {
		attr.attr_clr = MOUNT_ATTR__ATIME;
		attr.attr_set |= flags & MS_NOATIME ? MOUNT_ATTR_NOATIME : flags & MS_STRICTATIME ? MOUNT_ATTR_STRICTATIME : 0;
	}
	attr.propagation = flags & (MS_PRIVATE | MS_SLAVE | MS_SHARED);
	if (!attr.attr_set && !attr.attr_clr && !attr.propagation)
		return 0;
	return result(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | (flags & MS_REC ? AT_RECURSIVE : 0), &attr, sizeof attr));
}

int clone_tree(int fd, bool recursive)
{
	return result(syscall(SYS_open_tree, fd, "",
			      OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0)));
}

int move_tree(int tree, int target)
{
	return result(syscall(SYS_move_mount, tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
}

int bind_fd(int source, int target)
{
	autoclose int tree = clone_tree(source, false);
	return tree < 0 ? tree : move_tree(tree, target);
}

int op_bind(struct child *c, struct op *op)
{
	struct arg *a = op->args;
	autoclose int source = path_open(c, a[0].s, O_PATH, 0);
	autoclose int target = source < 0 ? -1 : open_target(c, a[1].s);
	if (source < 0 || target < 0)
		return source < 0 ? source : target;
	autoclose int tree = clone_tree(source, a[2].i & MS_REC);
	if (tree < 0)
		return tree;
	int rc = set_attributes(tree, a[2].i);
	return rc < 0 ? rc : move_tree(tree, target);
}

/* In a mount namespace that a user namespace owns, mounts copied from a more powerful one are locked, and the root of none of
 * them can be pivoted into. A recursive clone of the tree, mounted over itself, is our own. */
static int unlock_root(struct child *c)
{
	autoclose int tree = clone_tree(c->root, true);
	int rc = tree < 0 ? tree : move_tree(tree, c->root);
	if (rc < 0)
		return rc;
	close_fd(&c->root);
	c->root = take_fd(&tree);
	return 0;
}

static int enter_root(struct child *c)
{
	return result(fchdir(c->root) < 0 ? -1 : syscall(SYS_pivot_root, ".", "."));
}

int op_pivot(struct child *c, struct op *op)
{
	(void)op;
	autoclose int old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (c->root < 0)
		return -EBADF;
	if (old < 0)
		return -errno;
	int rc = enter_root(c);
	if (rc == -EINVAL && (rc = unlock_root(c)) == 0)
		rc = enter_root(c);
	if (rc < 0)
		return rc;
	/* nothing that is unmounted here may be unmounted elsewhere */
	if (fchdir(old) < 0 || sys_mount("", ".", "", MS_SLAVE | MS_REC, "") < 0)
		return -errno;
	if (syscall(SYS_umount2, ".", MNT_DETACH) < 0 || chdir("/") < 0)
		return -errno;
	c->inside = true;
	return 0;
}

static int open_null(void)
{
	struct stat st;
	autoclose int fd = open("/dev/null", O_PATH | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	return S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3) ? take_fd(&fd) : -ENODEV;
}

int op_mask(struct child *c, struct op *op)
{
	struct stat st;
	autoclose int target = open_target(c, op->args[0].s);
	if (target == -ENOENT || target == -ENOTDIR)
		return 0;
	if (target < 0 || fstat(target, &st) < 0)
		return target < 0 ? target : -errno;
	if (S_ISDIR(st.st_mode))
		return mount_on(c, "tmpfs", op->args[0].s, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,nr_inodes=1");
	autoclose int null = open_null();
	if (null < 0) {
		c->detail = "/dev/null is missing or not the null device";
		return null;
	}
	return bind_fd(null, target);
}

/* A path that is a mount already only changes its flags; anything else becomes a mount by being bound onto itself. */
int op_readonly(struct child *c, struct op *op)
{
	uint64_t flags = MS_RDONLY | (op->args[1].i & 1 ? MS_REC : 0);
	struct statx st;
	autoclose int target = path_open(c, op->args[0].s, O_PATH, 0);
	if (target == -ENOENT || target == -ENOTDIR)
		return 0;
	if (target < 0)
		return target;
	if (statx(target, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &st) == 0 && st.stx_attributes & STATX_ATTR_MOUNT_ROOT)
		return set_attributes(target, flags);
	autoclose int tree = clone_tree(target, flags & MS_REC);
	if (tree < 0)
		return tree;
	int rc = set_attributes(tree, flags);
	return rc < 0 ? rc : move_tree(tree, target);
}

static int write_at(int dir, const char *name, const char *text)
{
	autoclose int fd = openat(dir, name, O_WRONLY | O_CLOEXEC);
	return fd < 0 || write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

/* The helper of op_userns: shares descriptors with its creator, hands over its /proc directory, then changes its namespace
 * and lets itself be mapped. Its directory is opened by itself because only /proc/self is right in every PID namespace. */
static _Noreturn void userns_helper(int channel)
{
	int32_t message = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (message >= 0 && unshare(CLONE_NEWUSER) < 0)
		message = -1;
	if (message < 0)
		message = -errno;
	if (write(channel, &message, sizeof message) < 0)
		_exit(1);
	for (;;)
		pause();
}

int op_userns(struct child *c, struct op *op)
{
	int fds[2];
	int32_t dir;
	if (op->args[0].s[0] == '/') { /* one that exists */
		autoclose int ns = open(op->args[0].s, O_RDONLY | O_CLOEXEC);
		close_fd(&c->userns);
		c->userns = ns < 0 ? -1 : fcntl(ns, F_DUPFD_CLOEXEC, PLACED_MAX + 1);
		return c->userns < 0 ? -errno : 0;
	}
	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	autoclose int reading = fds[0], writing = fds[1];
	pid_t helper = clone_process(CLONE_FILES, NULL);
	if (helper == 0)
		userns_helper(writing);
	if (helper < 0)
		return -errno;
	int rc = read(reading, &dir, sizeof dir) == sizeof dir ? dir : -EIO;
	if (rc >= 0) {
		rc = write_at(dir, "uid_map", op->args[0].s);
		if (!rc)
			rc = write_at(dir, "gid_map", op->args[1].s);
		close_fd(&c->userns);
		autoclose int ns = openat(dir, "ns/user", O_RDONLY | O_CLOEXEC);
		if (!rc)
			rc = c->userns = ns < 0 ? -errno : fcntl(ns, F_DUPFD_CLOEXEC, PLACED_MAX + 1);
		close(dir);
	}
	kill(helper, SIGKILL);
	waitpid(helper, NULL, 0);
	return rc < 0 ? rc : 0;
}

int op_idmap(struct child *c, struct op *op)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t)c->userns };
	autoclose int old = path_open(c, op->args[0].s, O_PATH, 0);
	if (c->userns < 0)
		return -EBADF;
	if (old < 0)
		return old;
	autoclose int tree = clone_tree(old, true);
	if (tree < 0)
		return tree;
	if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr) < 0)
		return -errno;
	bool is_root = c->root >= 0 && same_file(old, c->root);
	int rc = move_tree(tree, old);
	if (!rc && is_root) { /* `%/` now means the clone */
		close(c->root);
		rc = c->root = result(fcntl(tree, F_DUPFD_CLOEXEC, PLACED_MAX + 1));
	}
	return rc < 0 ? rc : 0;
}
