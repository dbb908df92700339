/* Paths. `%/x` is x inside the container's root directory: the kernel resolves it there (openat2, RESOLVE_IN_ROOT), so no
 * symbolic link of an image leads out; everything that is created is created by one name in a directory opened that way. */
#include "stem.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define LINKS_MAX 40

int open_in(int dir, const char *path, int flags, mode_t mode, uint64_t resolve)
{
	struct open_how how = { .flags = (uint64_t)(flags | O_CLOEXEC), .mode = mode, .resolve = resolve };
	int rc;
	do /* EAGAIN: something was renamed meanwhile and the kernel could not vouch for ".." */
		rc = (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
	while (rc < 0 && errno == EAGAIN);
	return result(rc);
}

bool in_root(const char *path)
{
	return path[0] == '%' && path[1] == '/';
}

struct base {
	int dir;
	uint64_t resolve;
};

/* Where to start and what is left of the path. */
static int base_of(const struct child *c, const char **path, struct base *b)
{
	*b = (struct base){ AT_FDCWD, 0 };
	if (!in_root(*path))
		return 0;
	if (c->root < 0)
		return -EBADF;
	*b = (struct base){ c->root, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
	*path += 1 + strspn(*path + 1, "/");
	if (!**path)
		*path = ".";
	return 0;
}

int path_open(const struct child *c, const char *path, int flags, mode_t mode)
{
	struct base b;
	int rc = base_of(c, &path, &b);
	return rc < 0 ? rc : open_in(b.dir, path, flags, mode, b.resolve);
}

/* Splits "a/b/c///" into "a/b" and "c"; the parent of "c" is ".", of "/c" is "/". Writes into path. */
static char *split(char *path, const char **parent)
{
	size_t n = strlen(path);
	while (n > 1 && path[n - 1] == '/')
		path[--n] = 0;
	char *slash = strrchr(path, '/');
	if (!slash) {
		*parent = ".";
		return path;
	}
	*parent = slash == path ? "/" : path;
	*slash = 0;
	return slash + 1;
}

static int make_at(const struct base *b, const char *path, bool directory, mode_t mode, int *links);

/* The directory that holds the last component, made with its parents when missing; *last points into *copy. */
static int parent_at(const struct base *b, const char *path, char **copy, char **last, int *links)
{
	const char *parent;
	*copy = strdup(path);
	if (!*copy)
		return -ENOMEM;
	*last = split(*copy, &parent);
	return make_at(b, parent, true, 0755, links);
}

/* The target of a dangling symbolic link, as a path from the same base. */
static char *link_target(int dir, const char *name, const char *parent)
{
	char target[4096];
	ssize_t n = readlinkat(dir, name, target, sizeof target - 1);
	if (n <= 0)
		return NULL;
	target[n] = 0;
	char *joined = malloc(strlen(parent) + (size_t)n + 2);
	if (joined)
		strcat(strcat(strcpy(joined, target[0] == '/' ? "" : parent), target[0] == '/' ? "" : "/"), target);
	return joined;
}

/* Opens path (O_PATH); what is missing of it is made first. A dangling link is followed to where it points, inside. */
static int make_at(const struct base *b, const char *path, bool directory, mode_t mode, int *links)
{
	int fd = open_in(b->dir, path, O_PATH | (directory ? O_DIRECTORY : 0), 0, b->resolve);
	if (fd != -ENOENT || !*path)
		return fd;
	autofree char *copy = NULL;
	char *last;
	autoclose int parent = parent_at(b, path, &copy, &last, links);
	if (parent < 0)
		return parent;
	if (!directory) {
		autoclose int file = openat(parent, last, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, mode);
		fd = result(file);
	} else {
		fd = result(mkdirat(parent, last, mode));
	}
	if (fd < 0 && fd != -EEXIST)
		return fd;
	if (fd == -EEXIST) {
		autofree char *target = link_target(parent, last, last == copy ? "." : copy);
		if (++*links > LINKS_MAX)
			return -ELOOP;
		if (target)
			return make_at(b, target, directory, mode, links);
	}
	return open_in(b->dir, path, O_PATH | (directory ? O_DIRECTORY : 0), 0, b->resolve);
}

int make_in(int dir, uint64_t resolve, const char *path, bool directory, mode_t mode)
{
	int links = 0;
	return make_at(&(struct base){ dir, resolve }, path, directory, mode, &links);
}

int path_make(const struct child *c, const char *path, bool directory, mode_t mode)
{
	struct base b;
	int links = 0, rc = base_of(c, &path, &b);
	return rc < 0 ? rc : make_at(&b, path, directory, mode, &links);
}

/* The directory for creating or changing the last component itself; its name in *last (to be freed). */
int path_parent(const struct child *c, const char *path, char **last)
{
	struct base b;
	char *copy, *name;
	int links = 0, rc = base_of(c, &path, &b);
	if (rc < 0)
		return rc;
	rc = parent_at(&b, path, &copy, &name, &links);
	*last = rc < 0 ? NULL : strdup(name);
	free(copy);
	return rc;
}

/* A whole file, at most max bytes, with a NUL behind it. */
int read_all(int fd, size_t max, char **out, size_t *size)
{
	struct buf b = { 0 };
	char part[4096];
	for (;;) {
		ssize_t n = read(fd, part, sizeof part);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 || b.len + (size_t)n > max || !buf_add(&b, part, (size_t)(n ? n : 1))) {
			int error = n < 0 ? errno : EFBIG;
			buf_free(&b);
			return -error;
		}
		if (!n)
			break;
	}
	b.data[b.len - 1] = 0;
	*out = (char *)b.data;
	*size = b.len - 1;
	return 0;
}
