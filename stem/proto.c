/* Bytes to records: bounds are checked here once, so that nothing behind needs to. No I/O; this file is what the fuzzer runs. */
#include "stem.h"

#include <stdarg.h>
#include <stdio.h>

uint16_t get_u16(struct reader *r)
{
	uint16_t v = 0;
	if (r->end - r->at < 2)
		r->bad = true;
	else
		memcpy(&v, r->at, 2), r->at += 2;
	return v;
}

uint32_t get_u32(struct reader *r)
{
	uint32_t v = 0;
	if (r->end - r->at < 4)
		r->bad = true;
	else
		memcpy(&v, r->at, 4), r->at += 4;
	return v;
}

uint64_t get_u64(struct reader *r)
{
	uint64_t v = 0;
	if (r->end - r->at < 8)
		r->bad = true;
	else
		memcpy(&v, r->at, 8), r->at += 8;
	return v;
}

struct span get_span(struct reader *r)
{
	struct span s = { .size = get_u32(r) };
	if (r->bad || (size_t)(r->end - r->at) < s.size) {
		r->bad = true;
		return (struct span){ 0 };
	}
	s.data = r->at;
	r->at += s.size;
	return s;
}

char *span_dup(struct span s)
{
	char *copy = malloc((size_t)s.size + 1);
	if (copy) {
		if (s.size)
			memcpy(copy, s.data, s.size);
		copy[s.size] = 0;
	}
	return copy;
}

void fail_with(struct failure *f, uint32_t index, int error, const char *format, ...)
{
	va_list ap;
	f->index = index;
	f->error = error;
	va_start(ap, format);
	vsnprintf(f->text, sizeof f->text, format, ap);
	va_end(ap);
}

/* Argument types: s text, b bytes, i integer, * any number of texts. In `text`, $N is argument N. */
static const struct op_kind kinds[OP_END] = {
	[OP_MOUNT] = { "MOUNT", "sssis", "mount $0 on $1" },
	[OP_IMAGE] = { "IMAGE", "sssis", "mount image $0 on $1" },
	[OP_BIND] = { "BIND", "ssi", "bind $0 on $1" },
	[OP_MKDIR] = { "MKDIR", "si", "make directory $0" },
	[OP_TOUCH] = { "TOUCH", "si", "make file $0" },
	[OP_SYMLINK] = { "SYMLINK", "ss", "make symbolic link $1" },
	[OP_MKNOD] = { "MKNOD", "sii", "make device $0" },
	[OP_WRITE] = { "WRITE", "sbi", "write $0" },
	[OP_UNSHARE] = { "UNSHARE", "i", "unshare $0" },
	[OP_SETNS] = { "SETNS", "si", "join namespace $0" },
	[OP_JOIN] = { "JOIN", "ii", "join process $0" },
	[OP_CLONE] = { "CLONE", "i", "clone" },
	[OP_ROOT] = { "ROOT", "s", "root directory $0" },
	[OP_PIVOT] = { "PIVOT", "", "pivot_root" },
	[OP_CHROOT] = { "CHROOT", "s", "chroot $0" },
	[OP_CHDIR] = { "CHDIR", "s", "change directory to $0" },
	[OP_HOSTNAME] = { "HOSTNAME", "s", "set host name $0" },
	[OP_LINK] = { "LINK", "si", "set up interface $0" },
	[OP_ADDRESS] = { "ADDRESS", "sbi", "set address of interface $0" },
	[OP_ROUTE] = { "ROUTE", "bs", "set default route through $1" },
	[OP_RLIMIT] = { "RLIMIT", "iii", "set resource limit $0" },
	[OP_BOUND] = { "BOUND", "i", "limit capabilities" },
	[OP_USER] = { "USER", "sss", "become user $0" },
	[OP_CAPS] = { "CAPS", "iiii", "set capabilities" },
	[OP_NNP] = { "NNP", "", "set no_new_privs" },
	[OP_SECCOMP] = { "SECCOMP", "bi", "install seccomp filter" },
	[OP_MASK] = { "MASK", "s", "mask $0" },
	[OP_READONLY] = { "READONLY", "si", "make $0 read-only" },
	[OP_TTY] = { "TTY", "ss", "open terminal $0" },
	[OP_USERNS] = { "USERNS", "ss", "make user namespace" },
	[OP_IDMAP] = { "IDMAP", "s", "id-map $0" },
	[OP_ENTER] = { "ENTER", "", "enter user namespace" },
	[OP_DEATH] = { "DEATH", "i", "set parent-death signal" },
	[OP_OPEN] = { "OPEN", "sii", "open $0" },
	[OP_TAP] = { "TAP", "si", "attach to tap interface $0" },
	[OP_LISTEN] = { "LISTEN", "si", "listen on $0" },
	[OP_CHANNEL] = { "CHANNEL", "i", "place channel" },
	[OP_UMASK] = { "UMASK", "i", "set umask" },
	[OP_SETUID] = { "SETUID", "ii", "become uid $0" },
	[OP_CHOWN] = { "CHOWN", "sii", "change owner of $0" },
	[OP_TIME] = { "TIME", "i", "set clock" },
	[OP_EXEC] = { "EXEC", "i*", "exec $1" },
	[OP_BUILTIN] = { "BUILTIN", "i*", "builtin $1" },
	[OP_SYNC] = { "SYNC", "i", "wait for the runtime at point $0" },
	[OP_HOOK] = { "HOOK", "iii*", "run hook $3" },
	[OP_START] = { "START", "i", "wait for start" },
	[OP_NSFD] = { "NSFD", "ii", "join namespaces" },
	[OP_TREE] = { "TREE", "isi", "open mount source $1" },
	[OP_PICK] = { "PICK", "is", "open mount $1" },
	[OP_ATTR] = { "ATTR", "iiiii", "set mount attributes $1" },
	[OP_ATTACH] = { "ATTACH", "is", "mount on $1" },
	[OP_COPYUP] = { "COPYUP", "is", "copy contents into $1" },
	[OP_IDENTITY] = { "IDENTITY", "iibi", "become uid $0 and gid $1" },
	[OP_CWD] = { "CWD", "s", "change working directory to $0" },
	[OP_LOOKUP] = { "LOOKUP", "ss", "exec: \"$0\"" },
	[OP_READY] = { "READY", "", "prepare for exec" },
	[OP_MOVE] = { "MOVE", "", "move the root directory to /" },
	[OP_DOMAIN] = { "DOMAIN", "s", "set domain name $0" },
	[OP_PERSONALITY] = { "PERSONALITY", "i", "set personality $0" },
	[OP_SCHED] = { "SCHED", "iiiiiii", "set scheduling policy $0" },
	[OP_IOPRIO] = { "IOPRIO", "i", "set I/O priority $0" },
	[OP_KEYRING] = { "KEYRING", "s", "join session keyring $0" },
	[OP_DUMPABLE] = { "DUMPABLE", "i", "set dumpable to $0" },
	[OP_AFFINITY] = { "AFFINITY", "b", "set CPU affinity" },
	[OP_INIT] = { "INIT", "i", "leave an init behind" },
};

const struct op_kind *op_kind(uint16_t code)
{
	return code < OP_END && kinds[code].name ? &kinds[code] : NULL;
}

/* "mount proc on %/proc", for error texts. */
void op_describe(const struct op *op, char *out, size_t size)
{
	size_t used = 0;
	out[0] = 0;
	for (const char *t = kinds[op->code].text; *t && used + 24 < size; t++) {
		int n = 0;
		if (*t != '$') {
			out[used++] = *t;
			out[used] = 0;
			continue;
		}
		unsigned which = (unsigned)(*++t - '0');
		if (which >= op->count)
			continue;
		const struct arg *a = &op->args[which];
		if (kinds[op->code].args[which] == 'i')
			n = snprintf(out + used, size - used, a->i > 9 ? "0x%llx" : "%llu", (unsigned long long)a->i);
		else
			n = snprintf(out + used, size - used, "%.120s", a->s);
		used += (size_t)n < size - used ? (size_t)n : size - used - 1;
	}
}

static bool arg_valid(char kind, struct span s)
{
	if (kind == 'i')
		return s.size == 8;
	return kind == 'b' || !s.size || !memchr(s.data, 0, s.size);
}

/* One operation's shape: known code, right number and types of arguments. */
static bool op_check(struct reader *r, uint32_t index, struct failure *f, uint16_t *code)
{
	*code = get_u16(r);
	uint16_t count = get_u16(r);
	const struct op_kind *kind = op_kind(*code);
	if (r->bad || !kind) {
		fail_with(f, index, EINVAL, r->bad ? "the plan is truncated" : "unknown operation %u", *code);
		return false;
	}
	bool open_ended = strchr(kind->args, '*');
	size_t fixed = strlen(kind->args) - open_ended;
	if (count < fixed || (!open_ended && count > fixed)) {
		fail_with(f, index, EINVAL, "%s takes %zu arguments, not %u", kind->name, fixed, count);
		return false;
	}
	uint64_t argc = 0;
	for (size_t i = 0; i < count; i++) {
		struct span s = get_span(r);
		if (r->bad || !arg_valid(i < fixed ? kind->args[i] : 's', s)) {
			fail_with(f, index, EINVAL, "%s: argument %zu is malformed", kind->name, i);
			return false;
		}
		if (i == 0 && open_ended)
			memcpy(&argc, s.data, 8);
	}
	if (open_ended && (argc == 0 || argc > (uint64_t)count - fixed)) {
		fail_with(f, index, EINVAL, "%s: the argument vector is empty or shorter than its count", kind->name);
		return false;
	}
	return true;
}

static bool plan_check(struct reader r, uint32_t count, struct failure *f)
{
	for (uint32_t i = 0; i < count; i++) {
		uint16_t code;
		if (!op_check(&r, i, f, &code))
			return false;
		if ((code == OP_EXEC || code == OP_BUILTIN) != (i == count - 1)) {
			fail_with(f, i, EINVAL, "EXEC or BUILTIN must be the last operation, and only the last");
			return false;
		}
	}
	if (count == 0 || r.at != r.end) {
		fail_with(f, NO_INDEX, EINVAL, count ? "bytes after the last operation" : "the plan is empty");
		return false;
	}
	return true;
}

/* Parses and validates a whole spawn record; afterwards op_next cannot meet anything malformed. */
bool spawn_parse(const uint8_t *data, size_t size, struct spawn *s, struct failure *f)
{
	struct reader r = { data, data + size, false };
	s->log = get_span(&r);
	uint64_t keep = get_u64(&r);
	s->log_keep = (struct log_keep){ .limit = keep, .files = (uint8_t)(keep >> 48), .compress = keep >> 56 & 1 };
	s->exit = get_span(&r);
	s->oom = get_span(&r);
	s->clone = get_u64(&r);
	s->rows = get_u16(&r);
	s->columns = get_u16(&r);
	s->count = get_u32(&r);
	if (r.bad || !arg_valid('s', s->log) || !arg_valid('s', s->exit) || !arg_valid('s', s->oom)) {
		fail_with(f, NO_INDEX, EINVAL, "the spawn record is malformed");
		return false;
	}
	s->ops = r;
	return plan_check(r, s->count, f);
}

/* Copies the next operation out of a validated plan. False only without memory. The copies live as long as the child. */
bool op_next(struct reader *r, struct op *op)
{
	op->code = get_u16(r);
	op->count = get_u16(r);
	op->args = calloc((size_t)op->count + 1, sizeof *op->args);
	if (!op->args)
		return false;
	const char *types = kinds[op->code].args;
	for (size_t i = 0; i < op->count; i++) {
		struct span s = get_span(r);
		struct arg *a = &op->args[i];
		a->n = s.size;
		a->s = span_dup(s);
		if (!a->s)
			return false;
		if (*types == 'i')
			memcpy(&a->i, s.data, 8);
		if (*types && *types != '*')
			types++;
	}
	return true;
}

/* The record as a guest gets it: log and exit record stay with the relay. `out` has room for `size` bytes; returns the length. */
size_t spawn_without_paths(const uint8_t *data, size_t size, uint8_t *out)
{
	struct reader r = { data, data + size, false };
	get_span(&r);
	get_u64(&r);
	get_span(&r);
	size_t rest = (size_t)(r.end - r.at);
	memset(out, 0, 16);
	memcpy(out + 16, r.at, rest);
	return 16 + rest;
}

bool buf_add(struct buf *b, const void *data, size_t n)
{
	if (b->len + n > b->cap) {
		size_t cap = b->cap ? b->cap : 4096;
		while (cap < b->len + n)
			cap *= 2;
		uint8_t *grown = malloc(cap);
		if (!grown)
			return false;
		if (b->len)
			memcpy(grown, b->data + b->head, b->len);
		free(b->data);
		b->data = grown;
		b->cap = cap;
		b->head = 0;
	} else if (b->head + b->len + n > b->cap) {
		memmove(b->data, b->data + b->head, b->len);
		b->head = 0;
	}
	if (n)
		memcpy(b->data + b->head + b->len, data, n);
	b->len += n;
	return true;
}

void buf_skip(struct buf *b, size_t n)
{
	b->head += n;
	b->len -= n;
	if (!b->len)
		buf_free(b);
}

void buf_free(struct buf *b)
{
	free(b->data);
	*b = (struct buf){ 0 };
}
