/* The origin: HTTP/1.1 and raw echo, as cheap as it gets.
 *
 *   GET /bytes/N    N bytes of the pattern, with Content-Length
 *   GET /ws         with an upgrade and the key of RFC 6455's example: echoes its messages
 *   GET anything    "ok\n"
 *   PUT, POST       with a Content-Length: reads the body, then "ok\n"; at /upload the body must be
 *                   the pattern, else 422
 *
 * One thread, so never more than one processor. It is no server for strangers: what it does not
 * understand ends the connection.
 */
#include "blast.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	REQUEST_HEAD = 2048,
	FRAME = 65535 + 14,  /* the largest message, with a header and a mask */
	TURNS = 16,          /* calls in a row for one connection, so that no other waits for long */
};

enum mode { HTTP_DOOR, ECHO_DOOR, READING, BODY, SENDING, ECHOING, WEBSOCKET };

struct served {
	int fd;
	enum mode mode;
	int closing;           /* after the answer */
	int checked;           /* BODY: 1 the body must be the pattern, -1 it was not */
	uint32_t events;       /* what epoll watches */
	uint64_t left, at;     /* of a body, sent or received */
	char *kept;            /* output that the socket had no room for */
	size_t kept_from, kept_to;
	char *frames;          /* WEBSOCKET: a message that is not complete */
	size_t used;           /* of head or frames */
	char head[REQUEST_HEAD];
};

static const char OK_REPLY[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
static const char WRONG_BODY[] =
	"HTTP/1.1 422 Unprocessable Content\r\nContent-Length: 6\r\n\r\nwrong\n";
static const char UPGRADED[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
			       "Connection: Upgrade\r\nSec-WebSocket-Accept: " WS_ACCEPT "\r\n\r\n";

static char scratch[CHUNK];
static int ep;

static void watch(struct served *c, uint32_t events)
{
	struct epoll_event ev = { events, { .ptr = c } };

	if (events == c->events)
		return;
	if (epoll_ctl(ep, c->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &ev) < 0)
		die("epoll_ctl");
	c->events = events;
}

static void drop(struct served *c)
{
	close(c->fd);
	free(c->kept);
	free(c->frames);
	free(c);
}

/* From here on functions return 0 when the connection is to be dropped. */

/* Sends now or keeps: while something is kept, nothing is read. */
static int reply(struct served *c, const char *data, size_t n)
{
	ssize_t sent = send(c->fd, data, n, MSG_NOSIGNAL);

	if (sent == (ssize_t)n)
		return 1;
	if (sent < 0) {
		if (errno != EAGAIN)
			return 0;
		sent = 0;
	}
	c->kept = malloc(n - sent);
	if (!c->kept)
		return 0;
	memcpy(c->kept, data + sent, n - sent);
	c->kept_from = 0;
	c->kept_to = n - sent;
	watch(c, EPOLLOUT);
	return 1;
}

static int flush(struct served *c)
{
	ssize_t sent = send(c->fd, c->kept + c->kept_from, c->kept_to - c->kept_from, MSG_NOSIGNAL);

	if (sent < 0)
		return errno == EAGAIN;
	c->kept_from += sent;
	if (c->kept_from < c->kept_to)
		return 1;
	free(c->kept);
	c->kept = NULL;
	watch(c, EPOLLIN);
	return !c->closing;
}

/* A body of the pattern, after `head` (may be empty): large writes until the socket is full. */
static int send_body(struct served *c, const char *head, size_t n)
{
	c->mode = SENDING;
	for (int i = 0; i < TURNS && (n || c->left); i++) {
		struct iovec part[2] = {
			{ (char *)head, n },
			{ (char *)pattern_at(c->at), c->left < WRITE ? c->left : WRITE },
		};
		struct msghdr message = { .msg_iov = part, .msg_iovlen = 2 };
		ssize_t sent = sendmsg(c->fd, &message, MSG_NOSIGNAL);

		if (sent < 0 && errno == EAGAIN && !n)
			break;
		if (sent < (ssize_t)n) /* it asks without reading: not even the head has room */
			return 0;
		sent -= n;
		n = 0;
		c->at += sent;
		c->left -= sent;
	}
	if (c->left) {
		watch(c, EPOLLOUT);
		return 1;
	}
	c->mode = READING;
	watch(c, EPOLLIN);
	return !c->closing;
}

static int take_body(struct served *c, const char *data, size_t n)
{
	if (c->checked > 0 && !sampled(data, n, c->at))
		c->checked = -1;
	c->at += n;
	c->left -= n;
	if (c->left)
		return 1;
	c->mode = READING;
	if (c->checked < 0)
		return reply(c, WRONG_BODY, sizeof WRONG_BODY - 1);
	return reply(c, OK_REPLY, sizeof OK_REPLY - 1) && (!c->closing || c->kept);
}

/* Up to `n` bytes of messages in `data`, echoed where they are complete; how many were used up, or
 * -1. The mask of a client's header is left out of ours, so a reply fits before its own payload. */
static ssize_t echo_messages(struct served *c, unsigned char *data, size_t n)
{
	size_t done = 0;

	while (!c->kept && n - done >= 6) {
		unsigned char *frame = data + done, *payload, *mask;
		size_t length = frame[1] & 127, head = 2;

		if (!(frame[1] & 128) || length == 127 || (frame[0] & 15) == 8)
			return -1; /* unmasked, too large, or its last one */
		if (length == 126) {
			length = frame[2] << 8 | frame[3];
			head = 4;
		}
		if (n - done < head + 4 + length)
			break;
		mask = frame + head;
		payload = mask + 4;
		for (size_t i = 0; i < length; i++)
			payload[i] ^= mask[i & 3];
		memmove(frame + 4, frame, head);
		frame[5] &= 127;
		if ((frame[0] & 15) == 9) /* a ping is answered with a pong */
			frame[4]++;
		if (!reply(c, (char *)frame + 4, head + length))
			return -1;
		done += head + 4 + length;
	}
	return done;
}

static int read_messages(struct served *c, size_t more)
{
	ssize_t done;

	c->used += more;
	done = echo_messages(c, (unsigned char *)c->frames, c->used);
	if (done < 0)
		return 0;
	c->used -= done;
	memmove(c->frames, c->frames + done, c->used);
	return 1;
}

static int upgrade(struct served *c)
{
	size_t surplus = c->used;

	c->frames = malloc(FRAME);
	if (!c->frames)
		return 0;
	c->mode = WEBSOCKET;
	c->used = 0;
	memcpy(c->frames, c->head, surplus);
	return reply(c, UPGRADED, sizeof UPGRADED - 1) && read_messages(c, surplus);
}

struct request {
	const char *target;
	uint64_t length;
	int body, chunked, closing, upgrade;
};

/* A head that ends with its empty line. */
static struct request read_request(const char *head, size_t n)
{
	struct request r = { .target = memchr(head, ' ', n) };
	const char *line, *next, *end = head + n;

	r.body = !strncmp(head, "PUT ", 4) || !strncmp(head, "POST ", 5);
	r.target = r.target ? r.target + 1 : head;
	for (line = memchr(head, '\n', n) + 1; line < end; line = next) {
		next = memchr(line, '\n', end - line) + 1;
		if (!strncasecmp(line, "content-length:", 15))
			r.length = strtoull(line + 15, NULL, 10);
		else if (!strncasecmp(line, "transfer-encoding:", 18))
			r.chunked = 1;
		else if (!strncasecmp(line, "connection: close\r", 18))
			r.closing = 1;
		else if (!strncasecmp(line, "upgrade: websocket\r", 19))
			r.upgrade = 1;
	}
	return r;
}

/* The first head of the buffer, `n` bytes. */
static int answer(struct served *c, size_t n)
{
	struct request r = read_request(c->head, n);
	int checked = !strncmp(r.target, "/upload ", 8), bytes = !strncmp(r.target, "/bytes/", 7);
	char head[96];

	c->used -= n;
	memmove(c->head, c->head + n, c->used);
	c->closing = r.closing;
	c->at = 0;
	if (r.chunked)
		return 0;
	if (r.body) {
		size_t here = c->used < r.length ? c->used : r.length;
		int going;

		c->mode = BODY;
		c->checked = checked;
		c->left = r.length;
		going = take_body(c, c->head, here);
		c->used -= here;
		memmove(c->head, c->head + here, c->used);
		return going;
	}
	if (bytes) {
		c->left = strtoull(r.target + 7, NULL, 10);
		n = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %llu\r\n\r\n",
			     (unsigned long long)c->left);
		return send_body(c, head, n);
	}
	if (r.upgrade)
		return upgrade(c);
	return reply(c, OK_REPLY, sizeof OK_REPLY - 1) && (!c->closing || c->kept);
}

/* The heads that are complete, one after the other. */
static int answer_all(struct served *c)
{
	char *end;

	while (c->mode == READING && !c->kept && (end = memmem(c->head, c->used, "\r\n\r\n", 4)))
		if (!answer(c, end + 4 - c->head))
			return 0;
	return c->mode != READING || c->used < REQUEST_HEAD;
}

static ssize_t receive(struct served *c)
{
	switch (c->mode) {
	case READING:
		return recv(c->fd, c->head + c->used, REQUEST_HEAD - c->used, 0);
	case WEBSOCKET:
		return recv(c->fd, c->frames + c->used, FRAME - c->used, 0);
	case BODY: /* no further than its end: the next head goes elsewhere */
		return recv(c->fd, scratch, c->left < CHUNK ? c->left : CHUNK, 0);
	default:
		return recv(c->fd, scratch, CHUNK, 0);
	}
}

static int take(struct served *c, size_t n)
{
	switch (c->mode) {
	case READING:
		c->used += n;
		return answer_all(c);
	case WEBSOCKET:
		return read_messages(c, n);
	case BODY:
		return take_body(c, scratch, n) && answer_all(c);
	default:
		return reply(c, scratch, n);
	}
}

static int serve(struct served *c, uint32_t events)
{
	if (c->kept)
		return flush(c) && (c->kept || c->mode == ECHOING ||
				    (c->mode == WEBSOCKET ? read_messages(c, 0) : answer_all(c)));
	if (c->mode == SENDING) {
		if (events & (EPOLLERR | EPOLLHUP))
			return 0;
		return send_body(c, NULL, 0) && answer_all(c);
	}
	for (int i = 0; i < TURNS; i++) {
		enum mode mode = c->mode;
		ssize_t n = receive(c);

		if (n <= 0)
			return n < 0 && errno == EAGAIN;
		if (!take(c, n))
			return 0;
		/* A short read was all there was; only bodies come in many. */
		if (mode != BODY || c->mode != BODY || n < CHUNK)
			break;
	}
	return 1;
}

/* ---- connections -------------------------------------------------------------------------- */

static struct served *served(int fd, enum mode mode)
{
	struct served *c = malloc(sizeof *c);

	if (!c)
		die("malloc");
	memset(c, 0, offsetof(struct served, head));
	c->fd = fd;
	c->mode = mode;
	watch(c, EPOLLIN);
	return c;
}

static void open_doors(const struct targets *at, enum mode mode)
{
	int one = 1;

	for (unsigned i = 0; i < at->count; i++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* they inherit it */
		if (bind(fd, (const struct sockaddr *)&at->at[i], sizeof at->at[i]) < 0 ||
		    listen(fd, 4096) < 0)
			die("listen");
		served(fd, mode);
	}
}

static void accept_all(const struct served *door)
{
	int fd;

	while ((fd = accept4(door->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
		served(fd, door->mode == HTTP_DOOR ? READING : ECHOING);
	if (errno != EAGAIN && errno != ECONNABORTED)
		die("accept");
}

void origin(const struct options *options)
{
	struct epoll_event ready[BATCH];

	ep = epoll_create1(EPOLL_CLOEXEC);
	open_doors(&options->http, HTTP_DOOR);
	open_doors(&options->echo, ECHO_DOOR);
	puts("ready {}");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(ep, ready, BATCH, -1);

		for (int i = 0; i < n; i++) {
			struct served *c = ready[i].data.ptr;

			if (c->mode == HTTP_DOOR || c->mode == ECHO_DOOR)
				accept_all(c);
			else if (!serve(c, ready[i].events))
				drop(c);
		}
	}
}
