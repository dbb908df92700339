/* Unit tests of the parts that need no container: parsing, queues, paths, archives, accounts, logs. Built with ASan and UBSan.
 * usage: test DIR  (of the golden files that bind this side of the protocol to the Python side) */
#include "log.c"
#include "tar.c"
#define number account_number /* both have one of that name */
#define next_entry next_account
#include "user.c"
#undef number
#undef next_entry

#include <ftw.h>

static int checks;
#define CHECK(condition) \
	do { \
		checks++; \
		if (!(condition)) { \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			exit(1); \
		} \
	} while (0)

void guest_channel_lost(void)
{
	abort();
}

/* ---- proto.c ---- */

static size_t from_hex(const char *hex, uint8_t *out)
{
	size_t n = 0;
	for (; sscanf(hex, "%2hhx", &out[n]) == 1 && hex[0] > ' '; hex += 2)
		n++;
	return n;
}

/* A record of exactly its size on the heap, so that ASan sees every byte read too far. */
static bool parses(const uint8_t *data, size_t size, struct spawn *s, struct failure *f)
{
	uint8_t *copy = malloc(size ? size : 1);
	memcpy(copy, data, size);
	bool fine = spawn_parse(copy, size, s, f);
	free(copy);
	return fine;
}

static void test_golden_operations(const char *dir)
{
	static char line[4096];
	static uint8_t record[4096];
	char path[4096], name[32], text[300];
	int seen = 0;
	snprintf(path, sizeof path, "%s/operations.txt", dir);
	FILE *file = fopen(path, "r");
	CHECK(file);
	while (fgets(line, sizeof line, file)) {
		char *hex = strchr(line, ' ') + 1, *words = strchr(hex, ' ') + 1;
		struct spawn s;
		struct failure f;
		struct op op;
		words[strcspn(words, "\n")] = 0;
		snprintf(name, sizeof name, "%.*s", (int)(hex - line - 1), line);
		size_t size = from_hex(hex, record);
		CHECK(spawn_parse(record, size, &s, &f));
		CHECK(op_next(&s.ops, &op));
		op_describe(&op, text, sizeof text);
		CHECK(op.code == ++seen && !strcmp(op_kind(op.code)->name, name) && !strcmp(text, words));
		for (size_t cut = 0; cut < size; cut++)
			CHECK(!parses(record, cut, &s, &f) && f.error == EINVAL && *f.text);
		record[size] = 0;
		CHECK(!parses(record, size + 1, &s, &f));
		for (size_t i = 0; i < op.count; i++)
			free(op.args[i].s);
		free(op.args);
	}
	CHECK(seen == OP_END - 1);
	fclose(file);
}

static void test_golden_frames(const char *dir)
{
	static const uint16_t types[] = { FR_HELLO, FR_SPAWN, FR_ATTACH, FR_WRITE, FR_RESIZE, FR_SIGNAL, FR_READ, FR_HOLD };
	static char line[4096];
	static uint8_t bytes[4096];
	char path[4096];
	size_t seen = 0;
	snprintf(path, sizeof path, "%s/frames.txt", dir);
	FILE *file = fopen(path, "r");
	CHECK(file);
	while (fgets(line, sizeof line, file)) {
		struct frame f;
		size_t size = from_hex(strchr(line, ' ') + 1, bytes);
		memcpy(&f, bytes, sizeof f);
		CHECK(size == FRAME_HEAD + f.length && f.type == types[seen++]);
		struct reader r = { bytes + FRAME_HEAD, bytes + size, false };
		struct spawn s;
		struct failure failure;
		if (f.type == FR_HELLO)
			CHECK(f.flags == HELLO_CUSTODY && f.tag == 1 && get_u32(&r) == PROTOCOL_VERSION);
		if (f.type == FR_SPAWN) {
			CHECK(f.flags == (SPAWN_ATTACH | SPAWN_TTY | SPAWN_STDIN | SPAWN_MAIN | LOCAL | SPAWN_CHANNEL | SPAWN_CONSOLE));
			CHECK(spawn_parse(r.at, f.length, &s, &failure) && s.log_keep.limit == 1ull << 33 && s.log_keep.files == 7 && s.log_keep.compress && s.rows == 24 && s.columns == 80);
			CHECK(s.log.size == 3 && s.exit.size == 4 && s.oom.size == 6 && s.clone == 0x20020000 && s.count == 1);
		}
		if (f.type == FR_RESIZE)
			CHECK(get_u16(&r) == 50 && get_u16(&r) == 100);
		if (f.type == FR_SIGNAL)
			CHECK(f.flags == LOCAL && f.proc == (LOCAL_BIT | 1) && get_u32(&r) == 15);
		if (f.type == FR_READ)
			CHECK(f.tag == 0xffffffff && get_span(&r).size == 12 && !r.bad);
	}
	CHECK(seen == sizeof types / sizeof *types);
	fclose(file);
}

static void test_readers_stay_inside(void)
{
	uint8_t bytes[3] = { 1, 2, 3 };
	struct reader r = { bytes, bytes + 3, false };
	CHECK(get_u32(&r) == 0 && r.bad);
	r = (struct reader){ bytes, bytes + 3, false };
	CHECK(get_u16(&r) == 0x201 && !r.bad && get_u64(&r) == 0 && r.bad);
	uint8_t lies[6] = { 255, 255, 255, 255, 'x', 'y' };
	r = (struct reader){ lies, lies + 6, false };
	CHECK(get_span(&r).size == 0 && r.bad);
}

static void test_queue(void)
{
	struct buf b = { 0 };
	uint8_t expected = 0, next = 0, part[300];
	for (int round = 0; round < 500; round++) {
		size_t n = (size_t)(round * 37 % 300);
		for (size_t i = 0; i < n; i++)
			part[i] = next++;
		CHECK(buf_add(&b, part, n));
		size_t take = round % 3 ? b.len / 3 : b.len;
		for (size_t i = 0; i < take; i++)
			CHECK(b.data[b.head + i] == expected++);
		if (take)
			buf_skip(&b, take);
		CHECK(b.len || !b.data);
	}
	buf_free(&b);
}

static void test_failure_text_is_bounded(void)
{
	struct failure f;
	char long_name[1000];
	memset(long_name, 'x', sizeof long_name - 1);
	long_name[sizeof long_name - 1] = 0;
	fail_with(&f, 3, EACCES, "%s", long_name);
	CHECK(f.index == 3 && f.error == EACCES && strlen(f.text) == sizeof f.text - 1);
	struct arg args[2] = { { .s = long_name }, { .s = long_name } };
	char text[300];
	op_describe(&(struct op){ OP_SYMLINK, 2, args }, text, sizeof text);
	CHECK(strlen(text) < 150);
}

/* ---- path.c ---- */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

static void test_paths_stay_in_root(const char *top)
{
	char path[4096];
	struct stat st;
	struct child c = { .root = -1 };
	snprintf(path, sizeof path, "%s/root", top);
	CHECK(path_open(&c, "%/", O_PATH, 0) == -EBADF);
	CHECK(mkdir(path, 0755) == 0);
	c.root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	CHECK(symlinkat("../../out", c.root, "up") == 0 && symlinkat("/elsewhere/dir", c.root, "abs") == 0);
	CHECK(symlinkat("loop", c.root, "loop") == 0 && symlinkat("b/x", c.root, "a") == 0 && symlinkat("a/x", c.root, "b") == 0);
	const char *made[] = { "%/up/x/y", "%/abs/z", "%//slashes///here//", "%/../../dots", "%/x/../y" };
	for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
		autoclose int fd = path_make(&c, made[i], true, 0700);
		CHECK(fd >= 0 && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode));
	}
	const char *there[] = { "out/x/y", "elsewhere/dir/z", "slashes/here", "dots", "y" };
	for (size_t i = 0; i < sizeof there / sizeof *there; i++)
		CHECK(fstatat(c.root, there[i], &st, AT_SYMLINK_NOFOLLOW) == 0);
	snprintf(path, sizeof path, "%s/out", top);
	CHECK(access(path, F_OK) < 0);
	CHECK(path_make(&c, "%/loop", true, 0700) == -ELOOP && path_make(&c, "%/a/c", false, 0600) == -ELOOP);
	char *last;
	autoclose int parent = path_parent(&c, "%/dots/leaf//", &last);
	CHECK(parent >= 0 && !strcmp(last, "leaf"));
	free(last);
	autoclose int file = path_make(&c, "%/dots/file", false, 0640);
	CHECK(file >= 0 && fstat(file, &st) == 0 && (st.st_mode & 0777) == 0640);
	CHECK(path_make(&c, "%/dots/file", true, 0700) == -ENOTDIR);
	close(c.root);
}

/* ---- log.c ---- */

static void test_log(const char *top)
{
	char path[4096], old[4096];
	struct stat st;
	struct log l;
	snprintf(path, sizeof path, "%s/log", top);
	snprintf(old, sizeof old, "%s/log.1", top);
	struct span span = { (const uint8_t *)path, (uint32_t)strlen(path) };
	struct log_keep keep = { .limit = 100 }, ever = { 0 };
	CHECK(log_open(&l, (struct span){ 0 }, ever, false) == 0);
	log_write(&l, 1, "x", 1); /* to nowhere */
	CHECK(log_open(&l, span, keep, false) == 0);
	for (int i = 0; i < 10; i++)
		log_write(&l, 1, "0123456789", 10);
	log_close(&l);
	CHECK(stat(path, &st) == 0 && st.st_size == 23 * 2 && stat(old, &st) == 0 && st.st_size == 23 * 4);
	CHECK(truncate(path, 30) == 0 && log_open(&l, span, keep, false) == 0 && l.size == 23); /* half a record was cut off */
	log_close(&l);
	CHECK(truncate(path, 5) == 0 && log_open(&l, span, keep, false) == 0 && l.size == 0);
	keep.files = 1; /* no rotated ones: those that are there are left alone */
	l.keep = keep;
	CHECK(unlink(old) == 0);
	for (int i = 0; i < 5; i++)
		log_write(&l, 1, "0123456789", 10);
	CHECK(l.size == 23 && access(old, F_OK) < 0);
	l.keep.files = 4;
	for (int i = 0; i < 30; i++)
		log_write(&l, 1, "0123456789", 10);
	for (int i = 1; i <= 4; i++) {
		snprintf(old, sizeof old, "%s/log.%d", top, i);
		CHECK((access(old, F_OK) == 0) == (i < 4));
	}
	log_close(&l);
	CHECK(log_open(&l, span, ever, true) == 0 && ftruncate(l.fd, 0) == 0);
	l.size = 0;
	log_write(&l, 1, "plain", 5);
	CHECK(l.size == 5);
	log_close(&l);
	span = (struct span){ (const uint8_t *)"/no/such/file", 13 };
	CHECK(log_open(&l, span, ever, false) == -ENOENT);
	log_close(&l);
}

static void test_records(const char *top)
{
	char path[4096], text[100];
	snprintf(path, sizeof path, "%s/exit", top);
	CHECK(exit_record(path, 137, 9, true, 1234567890123456789ull) == 0);
	int n = file_read(path, text, sizeof text);
	CHECK(n == 28 && !memcmp(text, "137 9 1 1234567890123456789\n", 28));
	CHECK(exit_record("/no/such/exit", 0, 0, false, 0) == -ENOENT);
	static const struct {
		const char *text;
		int64_t count;
	} cases[] = { { "oom_kill 7\n", 7 }, { "low 1\noom 2\noom_kill 3\n", 3 }, { "oom_kill_disable 0\nunder_oom 0\noom_kill 12\n", 12 },
		      { "oom_kill_x 5\n", -1 }, { "", -1 }, { "xoom_kill 5\n", -1 } };
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		FILE *file = fopen(path, "w");
		CHECK(file && fputs(cases[i].text, file) >= 0 && fclose(file) == 0);
		CHECK(oom_count(path) == cases[i].count);
	}
	CHECK(oom_count(NULL) == -1 && oom_count("/no/such/file") == -1);
}

/* ---- user.c, tar.c ---- */

static void test_account_lines(void)
{
	char text[] = "root:x:0:0:r:/root:/bin/sh\n\nbroken\na:b:1:2:3:4:5:6:7\nlast:x:5:6::/h", *rest = text, *f[7];
	uint32_t n;
	CHECK(next_account(&rest, f, 7) && !strcmp(f[0], "root") && !strcmp(f[5], "/root"));
	CHECK(next_account(&rest, f, 7) && !*f[0]);
	CHECK(next_account(&rest, f, 7) && !strcmp(f[0], "broken") && !*f[2]);
	CHECK(next_account(&rest, f, 7) && !strcmp(f[6], "5"));
	CHECK(next_account(&rest, f, 7) && !strcmp(f[5], "/h") && !*f[6]);
	CHECK(!next_account(&rest, f, 7));
	CHECK(account_number("0", &n) && n == 0 && account_number("4294967294", &n) && n == 4294967294u);
	CHECK(!account_number("4294967295", &n) && !account_number("", &n) && !account_number("-1", &n) && !account_number("1x", &n));
	CHECK(!account_number("99999999999999999999", &n));
}

static const char *cleaned(const char *name)
{
	static char copy[200];
	strcpy(copy, name);
	return clean(copy);
}

static void test_archive_names(void)
{
	CHECK(!strcmp(cleaned("a/b"), "a/b") && !strcmp(cleaned("./a/"), "a") && !strcmp(cleaned("//a"), "a") && !strcmp(cleaned("/./a"), "a"));
	CHECK(!strcmp(cleaned("."), ".") && !strcmp(cleaned("/"), ".") && !strcmp(cleaned("./"), ".") && !strcmp(cleaned(""), "."));
	CHECK(!strcmp(cleaned("..a"), "..a") && !strcmp(cleaned("a../b"), "a../b") && !strcmp(cleaned("a/..b"), "a/..b"));
	CHECK(!cleaned("..") && !cleaned("../a") && !cleaned("a/..") && !cleaned("a/../b") && !cleaned("./../a") && !cleaned("/.."));
}

static void test_archive_numbers(void)
{
	CHECK(number("0000644", 8) == 0644 && number("    644 ", 8) == 0644 && number("77777777777", 12) == 077777777777ull);
	CHECK(number("\x80\0\0\0\0\0\0\1\0\0\0\0", 12) == 1ull << 32 && number("", 1) == 0 && number("9", 1) == 0);
	struct entry e = { .xattrs = { 0 } };
	char good[] = "9 path=x\n13 size=12345\n", bad[] = "99 path=x\n", none[] = "8 pathx\n", nul[] = "9 path=\0\n";
	clear(&e);
	CHECK(pax_parse(&e, good, 9) == 0 && !strcmp(e.path, "x"));
	close(2); /* the rest complains */
	CHECK(open("/dev/null", O_RDWR) == 2);
	CHECK(pax_parse(&e, bad, 10) < 0 && pax_parse(&e, none, 8) < 0 && pax_parse(&e, nul, 9) < 0);
	struct buf b = { 0 };
	for (size_t n = 0; n < 1100; n += 7) { /* every length that changes the number of digits of its own length */
		char value[1100];
		memset(value, 'v', sizeof value);
		pax_add(&b, "linkpath", value, n);
		char *copy = strndup((char *)b.data, b.len);
		CHECK(pax_parse(&e, copy, b.len) == 0 && strlen(e.link) == n);
		free(copy);
		buf_free(&b);
	}
}

int main(int argc, char **argv)
{
	char top[] = "/tmp/stem-unit-XXXXXX";
	if (argc != 2 || !mkdtemp(top))
		return 2;
	int console = dup(2);
	test_golden_operations(argv[1]);
	test_golden_frames(argv[1]);
	test_readers_stay_inside();
	test_queue();
	test_failure_text_is_bounded();
	test_paths_stay_in_root(top);
	test_log(top);
	test_records(top);
	test_account_lines();
	test_archive_names();
	test_archive_numbers();
	nftw(top, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	dprintf(console, "stem: %d checks passed\n", checks);
	return 0;
}
