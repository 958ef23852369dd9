/* The command line, and what origin and loads have in common. */
#include "blast.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SOURCES = 16 };

static const char *const ERROR_NAMES[ERRORS] = { "connect", "reset",   "short",
						 "status",  "timeout", "corrupt" };
static const char *const KIND_NAMES[] = { "get", "put", "stream", "sink", "echo", "ws" };

char pattern[PERIOD + WRITE];
struct totals totals;
static char complaint[160];

void die(const char *what)
{
	fprintf(stderr, "blast: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void refuse(const char *what, const char *given)
{
	fprintf(stderr, "blast: %s: %s\n", what, given);
	exit(2);
}

static int64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (int64_t)t.tv_sec * SECOND + t.tv_nsec;
}

int64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

int64_t thread_ns(void)
{
	return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

/* ---- bodies ------------------------------------------------------------------------------- */

void fill_pattern(void)
{
	uint32_t x = 1;

	for (int i = 0; i < PERIOD; i++) {
		x = x * 1664525 + 1013904223;
		pattern[i] = x >> 24;
	}
	for (int i = PERIOD; i < PERIOD + WRITE; i++)
		pattern[i] = pattern[i - PERIOD];
}

int sampled(const char *data, size_t n, uint64_t at)
{
	const char *wanted = pattern_at(at);

	if (n <= 2 * SAMPLE)
		return !memcmp(data, wanted, n);
	return !memcmp(data, wanted, SAMPLE) &&
	       !memcmp(data + n - SAMPLE, wanted + n - SAMPLE, SAMPLE);
}

/* ---- sockets and heads -------------------------------------------------------------------- */

/* A loopback destination is dialled from 127.0.0.2 to 127.0.0.17 in turn: ports that TIME_WAIT holds
 * do not run out, since 4-tuples are distinct per source address. IP_BIND_ADDRESS_NO_PORT leaves
 * the port to connect(), which knows the 4-tuple. Elsewhere there is one source address; what
 * keeps it from running out is that blast reads to the end of a stream and closes second, so
 * that TIME_WAIT is the other end's. */
int dial(const struct targets *to, unsigned turn, int rcvbuf)
{
	const struct sockaddr_in *at = &to->at[turn % to->count];
	struct sockaddr_in from = { .sin_family = AF_INET };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	if (ntohl(at->sin_addr.s_addr) >> 24 == 127) {
		from.sin_addr.s_addr = htonl(0x7f000002u + turn / to->count % SOURCES);
		setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
		if (bind(fd, (struct sockaddr *)&from, sizeof from) < 0)
			goto fail;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (rcvbuf) /* before connect(): the window scale is chosen by it */
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, sizeof rcvbuf);
	if (connect(fd, (const struct sockaddr *)at, sizeof *at) == 0 || errno == EINPROGRESS)
		return fd;
fail:
	one = errno;
	close(fd);
	errno = one;
	return -1;
}

int read_head(const char *text, size_t n, struct head *head)
{
	const char *line, *next, *end = text + n;

	if (n < 16 || memcmp(text, "HTTP/1.", 7) || text[8] != ' ')
		return 0;
	*head = (struct head){ .status = atoi(text + 9), .length = -1 };
	for (line = memchr(text, '\n', n) + 1; line < end; line = next) {
		next = memchr(line, '\n', end - line) + 1;
		if (!strncasecmp(line, "content-length:", 15))
			head->length = strtoll(line + 15, NULL, 10);
		else if (!strncasecmp(line, "sec-websocket-accept: " WS_ACCEPT "\r", 51))
			head->accepted = 1;
	}
	return 1;
}

/* ---- what is told ------------------------------------------------------------------------- */

void complain(enum error kind, const char *format, ...)
{
	va_list values;

	totals.errors[kind]++;
	if (*complaint)
		return;
	va_start(values, format);
	vsnprintf(complaint, sizeof complaint, format, values);
	va_end(values);
	for (char *c = complaint; *c; c++) /* parts of it came from outside, and it goes into JSON */
		if (*c < ' ' || *c > '~' || *c == '"' || *c == '\\')
			*c = '?';
}

uint64_t all_errors(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < ERRORS; i++)
		sum += totals.errors[i];
	return sum;
}

void mark(const char *word, int64_t at)
{
	printf("%s {\"ns\":%lld,\"done\":%llu,\"bytes\":%llu,\"errors\":%llu}\n", word,
	       (long long)at, (unsigned long long)totals.done, (unsigned long long)totals.bytes,
	       (unsigned long long)all_errors());
	fflush(stdout);
}

/* It closes our stdin once it has its readings. */
void wait_for_driver(void)
{
	char c;

	while (read(0, &c, 1) > 0)
		;
}

void report(const struct outcome *o)
{
	printf("result {\"done\":%llu,\"bytes\":%llu,\"seconds\":%.6f,\"rate\":%.3f,\"errors\":{",
	       (unsigned long long)o->done, (unsigned long long)o->bytes, o->seconds,
	       o->seconds > 0 ? o->done / o->seconds : 0);
	for (int i = 0; i < ERRORS; i++)
		printf("%s\"%s\":%llu", i ? "," : "", ERROR_NAMES[i],
		       (unsigned long long)totals.errors[i]);
	printf("},\"complaint\":\"%s\",\"unsent\":%llu,\"reopened\":%llu,\"alive\":%llu,", complaint,
	       (unsigned long long)totals.unsent, (unsigned long long)totals.reopened,
	       (unsigned long long)totals.alive);
	print_latency(o->latency);
	printf(",\"busy\":%.4f,\"lag_us\":%.2f}\n", o->busy,
	       o->lag ? percentile_us(o->lag, 0.99) : 0);
	fflush(stdout);
}

/* ---- the command line --------------------------------------------------------------------- */

static void read_targets(struct targets *targets, char *list)
{
	char *state, *one, *port;

	for (one = strtok_r(list, ",", &state); one; one = strtok_r(NULL, ",", &state)) {
		struct sockaddr_in at = { .sin_family = AF_INET };

		port = strchr(one, ':');
		if (!port || targets->count == MAX_TARGETS)
			refuse("not HOST:PORT, or too many", one);
		*port = 0;
		at.sin_port = htons(atoi(port + 1));
		if (inet_pton(AF_INET, one, &at.sin_addr) != 1)
			refuse("not an IPv4 address", one);
		targets->at[targets->count++] = at;
	}
}

static double number(const char *name, const char *value)
{
	char *end;
	double found = strtod(value, &end);

	if (!*value || *end || !(found >= 0 && found <= 1e15))
		refuse("not a number that is 0 or more", name);
	return found;
}

static enum kind kind_of(const char *value)
{
	for (unsigned i = 0; i < sizeof KIND_NAMES / sizeof *KIND_NAMES; i++)
		if (!strcmp(value, KIND_NAMES[i]))
			return i;
	refuse("not a kind of load", value);
	return GET;
}

static struct options read_options(int argc, char **argv)
{
	struct options o = { .path = "", .size = 1, .connections = 1, .timeout = 10 };

	for (int i = 2; i < argc; i++) {
		char *name = argv[i], *value = strchr(name, '=');

		if (!value)
			refuse("not NAME=VALUE", name);
		*value++ = 0;
		if (!strcmp(name, "to"))
			read_targets(&o.to, value);
		else if (!strcmp(name, "http"))
			read_targets(&o.http, value);
		else if (!strcmp(name, "echo"))
			read_targets(&o.echo, value);
		else if (!strcmp(name, "kind"))
			o.kind = kind_of(value);
		else if (!strcmp(name, "path"))
			o.path = value;
		else if (!strcmp(name, "size"))
			o.size = number(name, value);
		else if (!strcmp(name, "connections"))
			o.connections = number(name, value);
		else if (!strcmp(name, "on"))
			o.on = number(name, value);
		else if (!strcmp(name, "close"))
			o.close = number(name, value);
		else if (!strcmp(name, "rcvbuf"))
			o.rcvbuf = number(name, value);
		else if (!strcmp(name, "rate"))
			o.rate = number(name, value);
		else if (!strcmp(name, "warmup"))
			o.warmup = number(name, value);
		else if (!strcmp(name, "seconds"))
			o.seconds = number(name, value);
		else if (!strcmp(name, "timeout"))
			o.timeout = number(name, value);
		else if (!strcmp(name, "bytes_per_second"))
			o.bytes_per_second = number(name, value);
		else
			refuse("no such option", name);
	}
	return o;
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";
	struct options options = read_options(argc, argv);
	struct rlimit files;
	int serve = !strcmp(verb, "origin");

	signal(SIGPIPE, SIG_IGN);
	/* The default slack of 50 us would be most of what a fast proxy takes. */
	prctl(PR_SET_TIMERSLACK, 1);
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	fill_pattern();
	if (!strcmp(verb, "histogram"))
		return histogram_of_stdin(), 0;
	if (serve ? !options.http.count && !options.echo.count : !options.to.count)
		refuse("no address given, see blast.h and blast.py", verb);
	if (serve)
		origin(&options);
	else if (!strcmp(verb, "load"))
		load(&options);
	else if (!strcmp(verb, "hold"))
		hold(&options);
	else if (!strcmp(verb, "slow"))
		slow(&options);
	else
		refuse("no such verb", verb);
	return 0;
}
