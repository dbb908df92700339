/* tar-get and tar-put: pax archives of a file tree on standard output, and from standard input. Names of an archive are never
 * trusted: they are resolved beneath the destination by the kernel. */
#include "stem.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#define BLOCK 512
#define META_MAX (1u << 20)  /* extended headers */
#define DEPTH_MAX 500	     /* directories below each other; each holds a descriptor */
#define OCTAL_ID 07777777u   /* what fits the classic fields */
#define OCTAL_SIZE 077777777777ull
#define XATTR_PREFIX "SCHILY.xattr."

struct header {
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100], magic[6], version[2], uname[32],
		gname[32], major[8], minor[8], prefix[155], pad[12];
};
_Static_assert(sizeof(struct header) == BLOCK, "a tar header is one block");

static const char *program;
static bool list_only; /* tar-list: files without their contents, and what overlayfs says of directories */

__attribute__((format(printf, 2, 3))) static int fail(int error, const char *format, ...)
{
	char name[300];
	va_list ap;
	va_start(ap, format);
	vsnprintf(name, sizeof name, format, ap);
	va_end(ap);
	dprintf(2, "%s: %s: %s\n", program, name, strerror(error < 0 ? -error : error));
	return -1;
}

static unsigned checksum(const struct header *h)
{
	unsigned sum = 0;
	for (size_t i = 0; i < BLOCK; i++)
		sum += i - offsetof(struct header, checksum) < sizeof h->checksum ? ' ' : ((const unsigned char *)h)[i];
	return sum;
}

/* ---- writing ---- */

struct link_seen {
	struct link_seen *next;
	dev_t dev;
	ino_t ino;
	char *name;
};
static struct link_seen *links_seen[1024];
static uint8_t out[CHUNK];
static size_t out_used;

static int put(const void *data, size_t n)
{
	for (size_t done = 0; done < n;) {
		size_t part = n - done < sizeof out - out_used ? n - done : sizeof out - out_used;
		memcpy(out + out_used, (const char *)data + done, part);
		out_used += part;
		done += part;
		if (out_used < sizeof out)
			continue;
		for (size_t sent = 0; sent < out_used;) {
			ssize_t w = write(1, out + sent, out_used - sent);
			if (w < 0 && errno != EINTR)
				return -1; /* nobody reads any more */
			sent += w > 0 ? (size_t)w : 0;
		}
		out_used = 0;
	}
	return 0;
}

static int put_padding(uint64_t n)
{
	static const char zeros[BLOCK];
	return put(zeros, (BLOCK - n % BLOCK) % BLOCK);
}

static int put_end(void)
{
	static const char zeros[2 * BLOCK];
	if (put(zeros, sizeof zeros) < 0)
		return -1;
	for (size_t sent = 0; sent < out_used;) {
		ssize_t w = write(1, out + sent, out_used - sent);
		if (w < 0 && errno != EINTR)
			return -1;
		sent += w > 0 ? (size_t)w : 0;
	}
	return 0;
}

/* One pax record, "LENGTH key=value\n", whose length counts its own digits. */
static void pax_add(struct buf *b, const char *key, const void *value, size_t n)
{
	char head[300];
	size_t rest = strlen(key) + n + 3, total = rest + 1;
	while (total != rest + (size_t)snprintf(head, sizeof head, "%zu", total))
		total = rest + (size_t)snprintf(head, sizeof head, "%zu", total);
	int h = snprintf(head, sizeof head, "%zu %s=", total, key);
	buf_add(b, head, (size_t)h);
	buf_add(b, value, n);
	buf_add(b, "\n", 1);
}

static void pax_number(struct buf *b, const char *key, uint64_t value)
{
	char text[24];
	pax_add(b, key, text, (size_t)snprintf(text, sizeof text, "%llu", (unsigned long long)value));
}

/* user.* and file capabilities; other attributes belong to the file system they are on. */
static void pax_xattrs(struct buf *b, int fd)
{
	static char names[CHUNK], value[CHUNK];
	char key[300];
	ssize_t n = flistxattr(fd, names, sizeof names);
	for (char *name = names; n > 0 && name < names + n; name += strlen(name) + 1) {
		if (strncmp(name, "user.", 5) && strcmp(name, "security.capability") && !(list_only && !strcmp(name, "trusted.overlay.opaque")))
			continue;
		ssize_t size = fgetxattr(fd, name, value, sizeof value);
		snprintf(key, sizeof key, XATTR_PREFIX "%.255s", name);
		if (size >= 0)
			pax_add(b, key, value, (size_t)size);
	}
}

static void octal(char *field, size_t size, uint64_t value)
{
	char text[24];
	snprintf(text, sizeof text, "%0*llo", (int)size - 1, (unsigned long long)value);
	memcpy(field, text, size - 1);
}

static int put_block(struct header *h, char type, uint64_t size)
{
	char text[16];
	h->type = type;
	octal(h->size, sizeof h->size, size > OCTAL_SIZE ? 0 : size);
	memcpy(h->magic, "ustar\0" "00", 8);
	snprintf(text, sizeof text, "%06o", checksum(h));
	memcpy(h->checksum, text, 7);
	h->checksum[7] = ' ';
	return put(h, BLOCK);
}

static int put_header(const char *name, const struct stat *st, char type, const char *link, uint64_t size, struct buf *pax)
{
	struct header h = { 0 };
	int rc = 0;
	if (strlen(name) > sizeof h.name)
		pax_add(pax, "path", name, strlen(name));
	if (strlen(link) > sizeof h.link)
		pax_add(pax, "linkpath", link, strlen(link));
	if (size > OCTAL_SIZE)
		pax_number(pax, "size", size);
	if (st->st_uid > OCTAL_ID)
		pax_number(pax, "uid", st->st_uid);
	if (st->st_gid > OCTAL_ID)
		pax_number(pax, "gid", st->st_gid);
	if (pax->len) {
		struct header x = { .name = "././@PaxHeader" };
		octal(x.mode, sizeof x.mode, 0644);
		rc = put_block(&x, 'x', pax->len) < 0 || put(pax->data, pax->len) < 0 || put_padding(pax->len) < 0 ? -1 : 0;
	}
	memcpy(h.name, name, strnlen(name, sizeof h.name));
	memcpy(h.link, link, strnlen(link, sizeof h.link));
	octal(h.mode, sizeof h.mode, st->st_mode & 07777);
	octal(h.uid, sizeof h.uid, st->st_uid > OCTAL_ID ? 0 : st->st_uid);
	octal(h.gid, sizeof h.gid, st->st_gid > OCTAL_ID ? 0 : st->st_gid);
	octal(h.mtime, sizeof h.mtime, st->st_mtim.tv_sec < 0 ? 0 : (uint64_t)st->st_mtim.tv_sec & OCTAL_SIZE);
	if (type == '3' || type == '4') {
		octal(h.major, sizeof h.major, major(st->st_rdev));
		octal(h.minor, sizeof h.minor, minor(st->st_rdev));
	}
	return rc < 0 ? rc : put_block(&h, type, size);
}

/* The name under which this inode is in the archive already; NULL the first time. */
static const char *seen_before(const struct stat *st, const char *name)
{
	struct link_seen **slot = &links_seen[(st->st_ino ^ st->st_dev) % 1024];
	for (struct link_seen *l = *slot; l; l = l->next)
		if (l->dev == st->st_dev && l->ino == st->st_ino)
			return l->name;
	struct link_seen *l = malloc(sizeof *l);
	if (l) {
		*l = (struct link_seen){ *slot, st->st_dev, st->st_ino, strdup(name) };
		*slot = l;
	}
	return NULL;
}

/* Exactly st_size bytes, whatever happens to the file meanwhile: the header has promised them. */
static int put_content(int fd, uint64_t size)
{
	static uint8_t part[CHUNK];
	for (uint64_t left = size; left;) {
		size_t want = left < sizeof part ? (size_t)left : sizeof part;
		ssize_t n = read(fd, part, want);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			memset(part, 0, want);
			n = (ssize_t)want;
		}
		if (put(part, (size_t)n) < 0)
			return -1;
		left -= (uint64_t)n;
	}
	return put_padding(size);
}

static int put_file(int dir, const char *leaf, const char *name, const struct stat *expected, struct buf *pax)
{
	struct stat st;
	if (list_only)
		return put_header(name, expected, '0', "", 0, pax);
	autoclose int fd = openat(dir, leaf, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return errno == ENOENT ? 0 : fail(fd < 0 ? errno : ESTALE, "%s", name);
	const char *first = expected->st_nlink > 1 ? seen_before(&st, name) : NULL;
	if (first)
		return put_header(name, &st, '1', first, 0, pax);
	pax_xattrs(pax, fd);
	if (put_header(name, &st, '0', "", (uint64_t)st.st_size, pax) < 0)
		return -1;
	return put_content(fd, (uint64_t)st.st_size);
}

/* Kernel file systems have no contents worth copying, and some have endless ones. */
static bool kernel_fs(int fd)
{
	static const long types[] = { PROC_SUPER_MAGIC,	  SYSFS_MAGIC,	 CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC,
				      DEVPTS_SUPER_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC,	     SECURITYFS_MAGIC,
				      BPF_FS_MAGIC,	  EFIVARFS_MAGIC };
	struct statfs fs;
	if (fstatfs(fd, &fs) < 0)
		return true;
	for (size_t i = 0; i < sizeof types / sizeof *types; i++)
		if (fs.f_type == types[i])
			return true;
	return false;
}

static int put_entry(int dir, const char *leaf, const char *name, int depth);

static int put_directory(int fd, const char *name, int depth)
{
	struct stat st;
	struct buf pax __attribute__((cleanup(buf_free))) = { 0 };
	char child[PATH_MAX * 2];
	if (fstat(fd, &st) < 0 || depth > DEPTH_MAX)
		return fail(depth > DEPTH_MAX ? ELOOP : errno, "%s", name);
	snprintf(child, sizeof child, "%s/", name);
	pax_xattrs(&pax, fd);
	if (put_header(child, &st, '5', "", 0, &pax) < 0)
		return -1;
	DIR *entries = depth && kernel_fs(fd) ? NULL : fdopendir(dup(fd));
	int rc = 0;
	for (struct dirent *d; entries && rc == 0 && (d = readdir(entries));) {
		if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, ".."))
			continue;
		if (snprintf(child, sizeof child, "%s/%s", name, d->d_name) >= (int)sizeof child)
			rc = fail(ENAMETOOLONG, "%s", name);
		else
			rc = put_entry(fd, d->d_name, child, depth + 1);
	}
	if (entries)
		closedir(entries);
	return rc;
}

static int put_entry(int dir, const char *leaf, const char *name, int depth)
{
	struct stat st;
	struct buf pax __attribute__((cleanup(buf_free))) = { 0 };
	char target[PATH_MAX] = "";
	if (fstatat(dir, leaf, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT && depth ? 0 : fail(errno, "%s", name);
	switch (st.st_mode & S_IFMT) {
	case S_IFREG:
		return put_file(dir, leaf, name, &st, &pax);
	case S_IFDIR: {
		autoclose int fd = openat(dir, leaf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		return fd < 0 ? fail(errno, "%s", name) : put_directory(fd, name, depth);
	}
	case S_IFLNK:
		if (readlinkat(dir, leaf, target, sizeof target - 1) < 0)
			return fail(errno, "%s", name);
		return put_header(name, &st, '2', target, 0, &pax);
	case S_IFCHR:
		return put_header(name, &st, '3', "", 0, &pax);
	case S_IFBLK:
		return put_header(name, &st, '4', "", 0, &pax);
	case S_IFIFO:
		return put_header(name, &st, '6', "", 0, &pax);
	default:
		return 0; /* sockets have no place in an archive */
	}
}

/* The last component names the entries, and is not followed when it is a link; a trailing slash, or ".", follows it. */
int tar_get(const char *path, bool names)
{
	program = names ? "tar-list" : "tar-get";
	list_only = names;
	autofree char *copy = strdup(path);
	size_t n = strlen(path);
	bool follow = n == 0 || path[n - 1] == '/' || (n > 1 && !strcmp(path + n - 2, "/."));
	if (!copy)
		return 1;
	while (n > 1 && copy[n - 1] == '/')
		copy[--n] = 0;
	char *slash = strrchr(copy, '/'), *base = slash ? slash + 1 : copy;
	if (follow) {
		autoclose int fd = open_in(AT_FDCWD, copy, O_RDONLY | O_DIRECTORY, 0, RESOLVE_NO_MAGICLINKS);
		if (fd < 0)
			return fail(fd, "%s", path) < 0;
		return put_directory(fd, *base ? base : ".", 0) < 0 || put_end() < 0;
	}
	autofree char *leaf = strdup(base);
	*base = 0;
	autoclose int dir = open_in(AT_FDCWD, *copy ? copy : ".", O_PATH | O_DIRECTORY, 0, RESOLVE_NO_MAGICLINKS);
	if (dir < 0)
		return fail(dir, "%s", path) < 0;
	return put_entry(dir, leaf, leaf, 0) < 0 || put_end() < 0;
}

/* ---- reading ---- */

struct entry {
	char path[PATH_MAX], link[PATH_MAX];
	uint64_t size, uid, gid, major, minor;
	int64_t mtime;
	mode_t mode;
	char type;
	struct buf xattrs; /* name NUL u32 size value, repeated */
};
struct dir_time {
	struct dir_time *next;
	int64_t mtime;
	char path[];
};
static struct destination {
	int fd;
	uint64_t resolve;
	struct dir_time *times;
} dest;
static uint8_t in[CHUNK];
static size_t in_at, in_end;

/* Up to n bytes in place; NULL at the end of the input. */
static const uint8_t *take(size_t n, size_t *got)
{
	if (in_at == in_end) {
		ssize_t r;
		while ((r = read(0, in, sizeof in)) < 0 && errno == EINTR)
			;
		if (r <= 0)
			return NULL;
		in_at = 0;
		in_end = (size_t)r;
	}
	const uint8_t *data = in + in_at;
	*got = n < in_end - in_at ? n : in_end - in_at;
	in_at += *got;
	return data;
}

/* 1, 0 at the end of the input before the first byte, -1 when it ends in between. */
static int read_exactly(void *out_, size_t n)
{
	size_t got = 0, part;
	while (got < n) {
		const uint8_t *data = take(n - got, &part);
		if (!data)
			return got ? fail(EPROTO, "the archive is cut off") : 0;
		memcpy((char *)out_ + got, data, part);
		got += part;
	}
	return 1;
}

static int skip(uint64_t n)
{
	size_t part;
	for (; n; n -= part)
		if (!take(n < CHUNK ? (size_t)n : CHUNK, &part))
			return fail(EPROTO, "the archive is cut off");
	return 0;
}

static uint64_t padded(uint64_t n)
{
	return (n + BLOCK - 1) / BLOCK * BLOCK;
}

/* Octal text, or GNU's base 256 when the first bit is set. */
static uint64_t number(const char *field, size_t size)
{
	uint64_t value = 0;
	if (field[0] & 0x80) {
		for (size_t i = 1; i < size; i++)
			value = value << 8 | (unsigned char)field[i];
		return value;
	}
	for (size_t i = 0; i < size; i++)
		if (field[i] >= '0' && field[i] <= '7')
			value = value << 3 | (uint64_t)(field[i] - '0');
		else if (field[i] != ' ' || value)
			break;
	return value;
}

static int set_text(char *field, const char *value, size_t n)
{
	if (n >= PATH_MAX || memchr(value, 0, n))
		return fail(ENAMETOOLONG, "%.80s", value);
	memcpy(field, value, n);
	field[n] = 0;
	return 0;
}

static int pax_apply(struct entry *e, const char *key, char *value, size_t n)
{
	uint32_t size = (uint32_t)n;
	if (!strcmp(key, "path"))
		return set_text(e->path, value, n);
	if (!strcmp(key, "linkpath"))
		return set_text(e->link, value, n);
	if (!strcmp(key, "size"))
		e->size = strtoull(value, NULL, 10);
	else if (!strcmp(key, "uid"))
		e->uid = strtoull(value, NULL, 10);
	else if (!strcmp(key, "gid"))
		e->gid = strtoull(value, NULL, 10);
	else if (!strcmp(key, "mtime"))
		e->mtime = strtoll(value, NULL, 10);
	else if (!strncmp(key, "GNU.sparse.", 11))
		return fail(ENOTSUP, "sparse archive members");
	else if (!strncmp(key, XATTR_PREFIX, strlen(XATTR_PREFIX)) && e->xattrs.len + n < META_MAX) {
		key += strlen(XATTR_PREFIX);
		buf_add(&e->xattrs, key, strlen(key) + 1);
		buf_add(&e->xattrs, &size, 4);
		buf_add(&e->xattrs, value, n);
	}
	return 0;
}

/* The records of one extended header; `text` has a NUL behind its n bytes. */
static int pax_parse(struct entry *e, char *text, size_t n)
{
	for (size_t at = 0; at < n;) {
		char *end, *start = text + at;
		unsigned long length = strtoul(start, &end, 10);
		if (*end != ' ' || length > n - at || length < (size_t)(end - start) + 3 || start[length - 1] != '\n')
			return fail(EPROTO, "a malformed extended header");
		char *key = end + 1, *equals = memchr(key, '=', (size_t)(start + length - key));
		if (!equals)
			return fail(EPROTO, "a malformed extended header");
		*equals = start[length - 1] = 0;
		if (pax_apply(e, key, equals + 1, (size_t)(start + length - 1 - (equals + 1))) < 0)
			return -1;
		at += length;
	}
	return 0;
}

/* An extended header or a GNU long name: contents that apply to the next entry. */
static int read_meta(struct entry *e, char type, uint64_t size)
{
	if (size > META_MAX)
		return fail(EFBIG, "an extended header of %llu bytes", (unsigned long long)size);
	autofree char *text = calloc(1, (size_t)size + 1);
	if (!text || (size && read_exactly(text, (size_t)size) != 1) || skip(padded(size) - size) < 0)
		return -1;
	if (type == 'x')
		return pax_parse(e, text, (size_t)size);
	return type == 'g' ? 0 : set_text(type == 'L' ? e->path : e->link, text, strlen(text));
}

static void from_header(struct entry *e, const struct header *h)
{
	bool ustar = !memcmp(h->magic, "ustar", 5);
	bool prefixed = ustar && h->prefix[0] && !memcmp(h->magic, "ustar\0", 6);
	e->type = h->type;
	e->mode = (mode_t)number(h->mode, sizeof h->mode) & 07777;
	e->major = number(h->major, sizeof h->major);
	e->minor = number(h->minor, sizeof h->minor);
	if (e->size == UINT64_MAX)
		e->size = number(h->size, sizeof h->size);
	if (e->uid == UINT64_MAX)
		e->uid = number(h->uid, sizeof h->uid);
	if (e->gid == UINT64_MAX)
		e->gid = number(h->gid, sizeof h->gid);
	if (e->mtime == INT64_MIN)
		e->mtime = (int64_t)number(h->mtime, sizeof h->mtime);
	if (!*e->path)
		snprintf(e->path, sizeof e->path, "%.155s%s%.100s", prefixed ? h->prefix : "", prefixed ? "/" : "", h->name);
	if (!*e->link)
		snprintf(e->link, sizeof e->link, "%.100s", h->link);
	size_t n = strlen(e->path);
	if ((!e->type || e->type == '0') && n && e->path[n - 1] == '/') /* before ustar that was how directories were said */
		e->type = '5';
}

static void clear(struct entry *e)
{
	buf_free(&e->xattrs);
	e->path[0] = e->link[0] = 0;
	e->size = e->uid = e->gid = UINT64_MAX;
	e->mtime = INT64_MIN;
}

/* 1: e is the next entry; 0: the end; -1: not a (good) archive. */
static int next_entry(struct entry *e)
{
	struct header h;
	clear(e);
	for (;;) {
		int rc = read_exactly(&h, sizeof h);
		if (rc <= 0 || !h.name[0])
			return rc < 0 ? rc : 0;
		if (number(h.checksum, sizeof h.checksum) != checksum(&h))
			return fail(EPROTO, "not a tar archive, or a damaged one");
		if (!strchr("xgLK", h.type) || !h.type) {
			from_header(e, &h);
			return 1;
		}
		if (read_meta(e, h.type, number(h.size, sizeof h.size)) < 0)
			return -1;
	}
}

/* "./a//b/" to "a//b"; NULL for a name that contains "..". The root of the archive is ".". */
static char *clean(char *name)
{
	size_t n = strlen(name);
	while (n > 1 && name[n - 1] == '/')
		name[--n] = 0;
	while (*name == '/' || (name[0] == '.' && name[1] == '/'))
		name++;
	for (char *at = name; at; at = strchr(at, '/')) {
		at += *at == '/';
		if (at[0] == '.' && at[1] == '.' && (!at[2] || at[2] == '/'))
			return NULL;
	}
	return *name ? name : (char *)".";
}

/* The directory of `name`, made when missing and wanted; *leaf is the last component. Writes into name. */
static int open_parent(char *name, char **leaf, bool make)
{
	char *slash = strrchr(name, '/');
	*leaf = slash ? slash + 1 : name;
	if (!slash)
		return dup(dest.fd);
	*slash = 0;
	int fd = make ? make_in(dest.fd, dest.resolve, name, true, 0755) : open_in(dest.fd, name, O_PATH | O_DIRECTORY, 0, dest.resolve);
	*slash = '/';
	return fd;
}

static int set_attributes(int fd, const struct entry *e)
{
	bool root = geteuid() == 0;
	if (fchown(fd, (uid_t)e->uid, (gid_t)e->gid) < 0 && root)
		return -errno;
	if (fchmod(fd, e->mode) < 0)
		return -errno;
	for (size_t at = 0; at < e->xattrs.len;) {
		const char *name = (char *)e->xattrs.data + at;
		uint32_t size;
		at += strlen(name) + 1;
		memcpy(&size, e->xattrs.data + at, 4);
		at += 4;
		if (fsetxattr(fd, name, e->xattrs.data + at, size, 0) < 0 && root && errno != ENOTSUP)
			return -errno;
		at += size;
	}
	return 0;
}

static int put_regular(int dir, const char *leaf, const struct entry *e)
{
	const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_sec = e->mtime } };
	autoclose int fd = openat(dir, leaf, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	for (uint64_t left = e->size; left;) {
		size_t part, done = 0;
		const uint8_t *data = take(left < CHUNK ? (size_t)left : CHUNK, &part);
		while (data && done < part) {
			ssize_t n = write(fd, data + done, part - done);
			if (n < 0 && errno != EINTR) {
				int error = errno;
				unlinkat(dir, leaf, 0);
				return -error;
			}
			done += n > 0 ? (size_t)n : 0;
		}
		if (!data)
			return -EPROTO;
		left -= part;
	}
	int rc = set_attributes(fd, e);
	return rc < 0 ? rc : result(futimens(fd, times));
}

static int put_dir(int dir, const char *leaf, const char *name, const struct entry *e)
{
	struct stat st;
	bool there = fstatat(dir, leaf, &st, AT_SYMLINK_NOFOLLOW) == 0;
	if (there && !S_ISDIR(st.st_mode) && unlinkat(dir, leaf, 0) < 0)
		return -errno;
	if ((!there || !S_ISDIR(st.st_mode)) && mkdirat(dir, leaf, 0700) < 0)
		return -errno;
	autoclose int fd = openat(dir, leaf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int rc = fd < 0 ? -errno : set_attributes(fd, e);
	struct dir_time *t = rc < 0 ? NULL : malloc(sizeof *t + strlen(name) + 1);
	if (t) { /* set at the end: whatever is put into the directory would change it again */
		t->next = dest.times;
		t->mtime = e->mtime;
		strcpy(t->path, name);
		dest.times = t;
	}
	return rc;
}

static int put_link(int dir, const char *leaf, struct entry *e)
{
	char *target = clean(e->link), *old;
	if (!target)
		return -EXDEV;
	autoclose int from = open_parent(target, &old, false);
	return from < 0 ? from : result(linkat(from, old, dir, leaf, 0));
}

static int put_special(int dir, const char *leaf, struct entry *e)
{
	const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_sec = e->mtime } };
	mode_t kind = e->type == '3' ? S_IFCHR : e->type == '4' ? S_IFBLK : S_IFIFO;
	int rc = e->type == '2' ? symlinkat(e->link, dir, leaf)
				: mknodat(dir, leaf, kind | e->mode, makedev((unsigned)e->major, (unsigned)e->minor));
	if (rc < 0)
		return -errno;
	if (fchownat(dir, leaf, (uid_t)e->uid, (gid_t)e->gid, AT_SYMLINK_NOFOLLOW) < 0 && geteuid() == 0)
		return -errno;
	return result(utimensat(dir, leaf, times, AT_SYMLINK_NOFOLLOW));
}

static int extract(struct entry *e)
{
	char *name = clean(e->path), *leaf;
	if (!name)
		return fail(EXDEV, "%s leads out of the destination", e->path);
	if (!strcmp(name, "."))
		return skip(padded(e->size)); /* the destination keeps its own attributes */
	bool file = !e->type || strchr("07", e->type);
	if (!file && !strchr("123456", e->type))
		return fail(ENOTSUP, "%s is of type '%c'", name, e->type);
	autoclose int dir = open_parent(name, &leaf, true);
	int rc = dir;
	if (rc >= 0 && e->type != '5' && unlinkat(dir, leaf, 0) < 0 && errno != ENOENT)
		rc = -errno;
	if (rc >= 0)
		rc = file ? put_regular(dir, leaf, e)
		     : e->type == '5' ? put_dir(dir, leaf, name, e)
		     : e->type == '1' ? put_link(dir, leaf, e)
				      : put_special(dir, leaf, e);
	if (rc == -EPROTO)
		return fail(rc, "%s: the archive is cut off", name);
	if (rc < 0)
		return fail(rc, "%s", name);
	return skip(file ? padded(e->size) - e->size : padded(e->size));
}

int tar_put(const char *path)
{
	static struct entry e;
	struct stat root, st;
	size_t part;
	int rc;
	program = "tar-put";
	dest.fd = open_in(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0, RESOLVE_NO_MAGICLINKS);
	if (dest.fd < 0 || fstat(dest.fd, &st) < 0 || stat("/", &root) < 0)
		return fail(dest.fd < 0 ? dest.fd : errno, "%s", path) < 0;
	umask(0);
	/* In the root directory absolute links of the image mean what they say; anywhere else they would lead out. */
	bool whole = st.st_dev == root.st_dev && st.st_ino == root.st_ino;
	dest.resolve = (whole ? RESOLVE_IN_ROOT : RESOLVE_BENEATH) | RESOLVE_NO_MAGICLINKS;
	while ((rc = next_entry(&e)) > 0)
		if ((rc = extract(&e)) < 0)
			break;
	for (struct dir_time *t = dest.times; t; t = t->next) {
		const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_sec = t->mtime } };
		autoclose int fd = open_in(dest.fd, t->path, O_RDONLY | O_DIRECTORY, 0, dest.resolve);
		if (fd >= 0)
			futimens(fd, times);
	}
	while (rc == 0 && take(CHUNK, &part)) /* padding behind the end, so that the sender is not cut off */
		;
	return rc < 0;
}
