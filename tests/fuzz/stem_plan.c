/* libFuzzer: whatever bytes arrive as frames and spawn records, stem's parser stays inside them. */
#include "../../stem/stem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void walk_plan(const struct spawn *s)
{
	struct reader ops = s->ops;
	char text[300];
	for (uint32_t i = 0; i < s->count; i++) {
		struct op op;
		if (!op_next(&ops, &op))
			abort();
		op_describe(&op, text, sizeof text);
		if (strlen(text) >= sizeof text || ops.bad)
			abort();
		for (size_t a = 0; a < op.count; a++)
			free(op.args[a].s);
		free(op.args);
	}
	if (ops.at != ops.end) /* what was validated is what is carried out */
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct spawn s;
	struct failure f = { 0 };
	if (!spawn_parse(data, size, &s, &f)) {
		if (!f.error || !*f.text)
			abort();
		return 0;
	}
	walk_plan(&s);
	uint8_t *record = malloc(size + 16);
	size_t n = spawn_without_paths(data, size, record);
	if (n > size || !spawn_parse(record, n, &s, &f) || s.log.size || s.exit.size)
		abort();
	walk_plan(&s);
	free(record);
	return 0;
}
