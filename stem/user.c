/* Operation USER: names and numbers from /etc/passwd and /etc/group of the present root, by Docker's rules. */
#include "stem.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define FILE_MAX (4u << 20)
#define GROUPS_MAX 1024

static char *load(const char *path)
{
	struct stat st;
	char *text = NULL;
	size_t size;
	autoclose int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	autoclose int fd = open_in(root, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || read_all(fd, FILE_MAX, &text, &size) < 0)
		return strdup("");
	return text;
}

static bool number(const char *s, uint32_t *out)
{
	char *end;
	if (!*s || strspn(s, "0123456789") != strlen(s) || strlen(s) > 10)
		return false;
	unsigned long long v = strtoull(s, &end, 10);
	*out = (uint32_t)v;
	return v < 0xffffffffull;
}

/* Cuts the next line of *text into at most max fields at colons; returns their number, 0 at the end. Missing fields are "". */
static int next_entry(char **text, char **fields, int max)
{
	char *line = strsep(text, "\n");
	if (!line)
		return 0;
	for (int i = 0; i < max; i++)
		fields[i] = (line ? strsep(&line, ":") : NULL) ?: (char *)"";
	return max;
}

struct identity {
	uint32_t uid, gid;
	const char *name, *home;
	gid_t groups[GROUPS_MAX];
	int count;
};

static void add_group(struct identity *id, uint32_t gid)
{
	for (int i = 0; i < id->count; i++)
		if (id->groups[i] == gid)
			return;
	if (id->count < GROUPS_MAX)
		id->groups[id->count++] = gid;
}

static bool find_user(const char *wanted, struct identity *id)
{
	char *text = load("etc/passwd"), *f[7];
	uint32_t uid = 0, entry_uid, entry_gid;
	bool numeric = number(wanted, &uid);
	while (text && next_entry(&text, f, 7)) {
		if (!number(f[2], &entry_uid) || !number(f[3], &entry_gid) || !*f[0])
			continue;
		if (!strcmp(f[0], wanted) || (numeric && entry_uid == uid)) {
			*id = (struct identity){ .uid = entry_uid, .gid = entry_gid, .name = f[0], .home = f[5] };
			return true;
		}
	}
	*id = (struct identity){ .uid = uid };
	return numeric;
}

static bool find_group(const char *wanted, uint32_t *gid)
{
	char *text = load("etc/group"), *f[4];
	while (text && next_entry(&text, f, 4))
		if (*f[0] && !strcmp(f[0], wanted) && number(f[2], gid))
			return true;
	return number(wanted, gid);
}

/* The groups of /etc/group that list the user as a member. */
static void add_memberships(struct identity *id)
{
	char *text = load("etc/group"), *f[4];
	uint32_t gid;
	while (id->name && text && next_entry(&text, f, 4)) {
		char *members = f[3], *member;
		while ((member = strsep(&members, ",")))
			if (!strcmp(member, id->name) && number(f[2], &gid))
				add_group(id, gid);
	}
}

static int not_found(struct child *c, const char *what, const char *name, const char *file)
{
	char *text;
	if (asprintf(&text, "no %s %s in %s", what, name, file) >= 0)
		c->detail = text;
	return -ENOENT;
}

static int become(const struct identity *id, bool groups)
{
	for (int fd = 0; fd < 3; fd++) {
		struct stat st;
		if (fstat(fd, &st) == 0 && (S_ISFIFO(st.st_mode) || isatty(fd)) && fchown(fd, id->uid, (gid_t)-1) < 0 && errno == EIO)
			return -EIO;
	}
	if ((groups && setgroups((size_t)id->count, id->groups) < 0) || prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 ||
	    syscall(SYS_setresgid, id->gid, id->gid, id->gid) < 0 || syscall(SYS_setresuid, id->uid, id->uid, id->uid) < 0)
		return -errno;
	return 0;
}

int op_user(struct child *c, struct op *op)
{
	static struct identity id;
	uint32_t gid;
	char *group = op->args[0].s, *user = strsep(&group, ":"), *extra = op->args[1].s, *name;
	if (!find_user(*user ? user : "0", &id))
		return not_found(c, "user", user, "/etc/passwd");
	if (group && *group) {
		if (!find_group(group, &id.gid))
			return not_found(c, "group", group, "/etc/group");
	} else {
		add_memberships(&id);
	}
	while ((name = strsep(&extra, ",")))
		if (*name) {
			if (!find_group(name, &gid))
				return not_found(c, "group", name, "/etc/group");
			add_group(&id, gid);
		}
	c->home = id.home && *id.home ? id.home : *op->args[2].s ? op->args[2].s : "/";
	return become(&id, true);
}

/* By numbers alone: an image whose /etc/passwd has a user called "1000" must not choose who runs. Only HOME is looked up. */
int op_identity(struct child *c, struct op *op)
{
	static struct identity id;
	struct arg *a = op->args;
	char *text = load("etc/passwd"), *f[7];
	uint32_t uid;
	id = (struct identity){ .uid = (uint32_t)a[0].i, .gid = (uint32_t)a[1].i, .count = (int)(a[2].n / sizeof(gid_t)) };
	if (a[2].n % sizeof(gid_t) || id.count > GROUPS_MAX)
		return -EINVAL;
	memcpy(id.groups, a[2].s, a[2].n);
	c->home = "/";
	while (text && next_entry(&text, f, 7))
		if (*f[0] && number(f[2], &uid) && uid == id.uid) {
			c->home = *f[5] ? f[5] : "/";
			break;
		}
	return become(&id, !(a[3].i & 1));
}
