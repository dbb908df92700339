/* libFuzzer: headers of an archive, up to but not including the file system. */
#include <stdio.h>
#define dprintf(fd, ...) snprintf(NULL, 0, __VA_ARGS__) /* what fail() says is not the point */
#include "../../stem/tar.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct entry e;
	static int quiet;
	program = "fuzz";
	if (!quiet) {
		quiet = open("/dev/null", O_RDWR);
		dup2(quiet, 0); /* what lies behind the input is its end */
	}
	in_end = size < sizeof in ? size : sizeof in;
	in_at = 0;
	memcpy(in, data, in_end);
	/* the checksums are made to fit, or nothing would ever get past them */
	for (size_t at = 0; at + BLOCK <= in_end; at += BLOCK) {
		struct header *h = (struct header *)(in + at);
		if (h->name[0] && h->checksum[0] == '@')
			snprintf(h->checksum, sizeof h->checksum, "%06o", checksum(h));
	}
	while (next_entry(&e) > 0) {
		char *name = clean(e.path), *link = clean(e.link);
		if ((name && (strstr(name, "/../") || *name == '/')) || (link && *link == '/'))
			abort();
		for (size_t at = 0; at < e.xattrs.len;) {
			uint32_t n;
			at += strlen((char *)e.xattrs.data + at) + 1;
			memcpy(&n, e.xattrs.data + at, 4);
			at += 4 + n;
			if (at > e.xattrs.len)
				abort();
		}
		bool file = !e.type || strchr("07", e.type);
		if (skip(padded(e.size)) < 0 && !file)
			break;
	}
	buf_free(&e.xattrs);
	return 0;
}
