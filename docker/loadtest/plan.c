/* What an exchange is: the bytes that begin it, its body, and the length of what must come back. */
#include "blast.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char MASK[4] = { 0x37, (char)0xfa, 0x21, 0x3d };

static void plan_messages(struct plan *plan)
{
	static char masked[sizeof pattern];
	uint64_t n = plan->body_length;

	plan->reply_length = n;
	plan->body = pattern;
	if (n < 1 || n > (plan->kind == WS ? 65535 : CHUNK))
		errno = EMSGSIZE, die("size of a message");
	if (plan->kind == ECHO_)
		return;
	/* Messages begin at multiples of 4 (see load.c), so one masked copy serves all. */
	for (size_t i = 0; i < sizeof masked; i++)
		masked[i] = pattern[i] ^ MASK[i & 3];
	plan->body = masked;
	plan->head[0] = plan->echo_head[0] = (char)0x82; /* binary, final */
	plan->echo_head_length = n < 126 ? 2 : 4;
	if (n < 126) {
		plan->echo_head[1] = n;
	} else {
		plan->echo_head[1] = 126;
		plan->echo_head[2] = n >> 8;
		plan->echo_head[3] = n;
	}
	memcpy(plan->head, plan->echo_head, plan->echo_head_length);
	plan->head[1] |= (char)0x80;
	memcpy(plan->head + plan->echo_head_length, MASK, 4);
	plan->head_length = plan->echo_head_length + 4;
	plan->reply_length += plan->echo_head_length;
}

void make_plan(struct plan *plan, const struct options *o)
{
	static const char *const paths[] = { "/", "/upload", ENDLESS_PATH, "/upload", "", "/ws" };
	const char *path = *o->path ? o->path : paths[o->kind];
	int upload = o->kind == PUT || o->kind == SINK, n;

	plan->kind = o->kind;
	plan->close = o->close;
	plan->http = o->kind != ECHO_ && o->kind != WS;
	if (o->close && o->kind != GET)
		errno = EINVAL, die("close=1 goes with kind=get");
	if ((o->kind == STREAM || o->kind == SINK) && o->rate > 0)
		errno = EINVAL, die("what never ends has no rate");
	if (upload) {
		plan->body_length = o->kind == SINK ? ENDLESS : o->size;
		plan->body = pattern;
		n = snprintf(plan->head, sizeof plan->head,
			     "%s %s HTTP/1.1\r\nHost: loadtest\r\nContent-Length: %llu\r\n\r\n",
			     o->kind == SINK ? "POST" : "PUT", path,
			     (unsigned long long)plan->body_length);
	} else {
		n = snprintf(plan->head, sizeof plan->head, "GET %s HTTP/1.1\r\nHost: loadtest\r\n%s\r\n",
			     path, o->close ? "Connection: close\r\n" : "");
	}
	if (n >= (int)sizeof plan->head)
		errno = ENAMETOOLONG, die("path");
	plan->head_length = n;
	plan->reply_length = 3;
	if ((o->kind == GET || o->kind == STREAM) && !strncmp(path, "/bytes/", 7)) {
		plan->pattern = 1;
		plan->reply_length = strtoull(path + 7, NULL, 10);
	}
	if (plan->http)
		return;
	plan->handshake_length = snprintf(
		plan->handshake, sizeof plan->handshake,
		"GET %s HTTP/1.1\r\nHost: loadtest\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " WS_KEY "\r\n\r\n", path);
	plan->head_length = 0;
	plan->body_length = o->size;
	plan_messages(plan);
}
