// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The verdict program of l7proxy: for each skb that arrives on a spliced socket, redirect it to its
 * sink, or pass it to user space. The sink is the other side of a pair, for as long as both live,
 * or another single socket, for as many bytes as user space has said.
 *
 * Some facts about SOCKMAP, and what follows
 *
 * 1. Without a stream parser the program runs once for each skb, from sk_psock_verdict_recv(),
 *    under the lock of the socket that the bytes arrive on. So a direction has one writer in the
 *    kernel, and plain stores to its entry are enough. With a parser, SK_PASS miscounts copied_seq
 *    and the connection stalls. => stream_verdict only.
 *
 * 2. tcp_read_skb() takes whole skbs and never compares them with copied_seq. A retransmission
 *    that overlaps what was received, or an skb of which user space read a part before insertion,
 *    brings bytes that were taken already. => trim(): the next expected sequence number is kept,
 *    and what lies before it is cut off the front.
 *
 * 3. The FIN comes as an skb of length 0, and sk_psock_backlog() takes a send of 0 bytes for a
 *    broken pipe: EPIPE, and that psock never sends again. Redirected, it does that to the
 *    sink. Passed, it does it to its own socket, if bytes are still waiting there to be sent: it
 *    is queued behind them. => length 0 is dropped, always. trim() comes first: a retransmission
 *    where only the FIN is new has length 0 after it. Nothing is lost with it: tcp_fin() has set
 *    RCV_SHUTDOWN and SOCK_DONE before, so recv() returns 0 and epoll says RDHUP. But recv() can
 *    say so while passed bytes still wait in that same queue: the end of a direction is where user
 *    space has read all that was passed, and recv() returns 0.
 *
 * 4. bpf_sk_redirect_map() answers SK_DROP for an empty slot, and the bytes are acknowledged and
 *    gone. => the sink is looked up first, and a redirect that fails is a pass.
 *
 * 5. Redirected skbs wait in psock->ingress_skb of the sink, a queue without a bound that is
 *    charged to nobody (about 1.1 KB for each 1-byte segment), and while the send buffer is full
 *    a kworker polls. => admits(): an skb is redirected only while the sink's send buffer has room
 *    for it and for everything that is on its way there. Else it is passed: it stays charged to
 *    the receiving socket, and TCP's window holds the sender.
 *
 * 6. What is redirected to a dead socket is acknowledged and freed; nobody is told. => admits()
 *    looks at error, shutdown and state. The sink can still die between this look and the send;
 *    what is lost then would have been lost in its send queue a moment later, and user space
 *    resets both sides on any error.
 *
 * 7. Urgent data comes in-band: a byte that a plain reader would not see. => a fault.
 *
 * The order across the two ways
 *
 *    `passed` is written here only, `relayed` by user space only. An skb is redirected only if
 *    passed == relayed. User space writes to the sink only while they differ or the direction is
 *    not armed, only after it saw every redirected byte in the write queue there, and it sets
 *    `relayed` after its write. So the two never write at the same time.
 *
 *    passed is added to atomically, a full barrier, and only then relayed is read: if that equals
 *    passed before the addition, user space may believe that nothing is left to do, and gets an
 *    event. User space for its part stores relayed, makes a system call that takes the lock of the
 *    receiving socket, and reads passed again. Whoever comes second sees the other's store.
 *
 *    After such an event the gate is shut until user space sets `relayed`, and after the one at the
 *    limit there is no other: for each time that it opens the gate, user space finds one event at
 *    most in the ring. How it keeps that within the ring's room, l7proxy/datapath/maps.py tells.
 *
 * The limit
 *
 *    redirected + passed is the position of the next byte in the stream. An skb that ends beyond
 *    the limit is passed whole, and so is all that follows: the first of those bytes belong to the
 *    body, user space writes them to the sink. A position is the same whichever way the bytes
 *    before it went: the limit need not move when user space relays some of the body.
 *
 *    The skb that ends at the limit sends an event, for nothing may ever follow. Behind the limit
 *    a pass sends none: either that event was sent, or user space has relayed the bytes up to the
 *    limit itself and knows. It halts the direction then, and looks at the socket.
 *
 * Windows between user space and the verdict
 *
 *    User space changes aim, limit and relayed without the lock, while a verdict may run.
 *
 *    Halting: it stores aim = 0 and limit = 0, then makes a system call that takes the lock of the
 *    receiving socket. A verdict that read the old aim holds that lock until its skb is in the
 *    sink's queue: it is over when the call returns, and later ones see 0. Only then may another
 *    socket be put into the slot of the sink. A sink may be closed before that: its slot is empty,
 *    and bpf_sk_redirect_map() looks the slot up again, so the skb is passed; or the redirect has
 *    been decided, and its bytes end with that socket, as those in its send queue do.
 *
 *    Arming: a direction is armed only when it is halted, or new. The verdict may see the three
 *    stores in any order. Old aim: 0, pass. New aim, old limit: it is 0, pass. New aim, old
 *    relayed: if it differs, passed has gone beyond it (what user space has taken since was
 *    passed), so the gate is shut. Each of these passes is without an event, or with one too many,
 *    so user space makes the system call after its stores here, too, and reads passed again. Sink
 *    and epoch are one word: never the base_seq of one sink for another.
 *
 * Reads without the lock
 *
 *    The sink's fields are read without its lock. A send first adds to sk_wmem_queued, then
 *    to write_seq; here write_seq is read first. So bytes that move between the two reads are
 *    counted twice, never missed. Acknowledgements only make room. An skb admitted on a stale
 *    value overshoots by what one send adds at most; it waits in the queue of (5), within
 *    backlog_skbs.
 *
 *    base_seq is exact only if every redirected byte is in the write queue when it is set. It is
 *    set at the first redirect in an epoch (user space arms only when nothing is in flight towards
 *    the sink) or after a pass (user space waited for exactly that before it set relayed). Should
 *    it ever be wrong, the bytes in flight look like more than they are or wrap to a huge number,
 *    and the skb is passed.
 */
#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "l7proxy.h"

/* The few fields that are read; offsets come from the running kernel's BTF. */
#define KERNEL __attribute__((preserve_access_index))

struct sock_common {
	volatile unsigned char skc_state;
} KERNEL;

struct sock {
	struct sock_common __sk_common;
	int sk_wmem_queued;
	int sk_sndbuf;
	int sk_err;
	__u8 sk_shutdown;
} KERNEL;

struct inet_sock {
	struct sock sk;
} KERNEL;

struct inet_connection_sock {
	struct inet_sock icsk_inet;
} KERNEL;

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 copied_seq;
	__u32 write_seq;
	__u16 urg_data;
} KERNEL;

struct tcp_skb_cb {
	__u32 seq;
} KERNEL;

struct sk_buff {
	char cb[48];
} KERNEL;

enum {
	TCP_ESTABLISHED = 1, /* include/net/tcp_states.h */
	TCP_CLOSE_WAIT = 8,
	SEND_SHUTDOWN = 2, /* include/net/sock.h */
	ADJUST_MAX = 4095, /* sk_skb_adjust_room() refuses more than 0xfff at once */
	ADJUST_ROUNDS = 160, /* 160 * 4095 B is more than the largest skb, 512 KiB (BIG TCP) */
};

extern void *bpf_cast_to_kern_ctx(void *) __ksym __weak;
extern void *bpf_rdonly_cast(void *, __u32) __ksym __weak;

const volatile struct l7_limits limits = {
	.backlog_bytes = 0,
	.backlog_skbs = 256,
	.skb_overhead = 1024,
};

/* max_entries of all four and of the ring are set by the loader. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} socks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2);
	__type(key, __u64); /* socket cookie */
	__type(value, __u32);
} index_of SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct l7_direction);
} directions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* one for each possible CPU */
	__type(key, __u32);
	__type(value, struct l7_totals);
} totals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

/*
 * Atomic, although each CPU has its own entry: the program also runs in process context, from
 * release_sock(), where a softirq on the same CPU can run it for another socket in between.
 */
static __always_inline void count(__u64 *total, __u64 n)
{
	__sync_fetch_and_add(total, n);
}

static __always_inline void tell(__u32 index)
{
	struct l7_event event = { .index = index };

	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
}

/* User space resets both sides; not one more byte of this direction goes anywhere. */
static __always_inline int give_up(struct l7_direction *dir, struct l7_totals *total, __u32 index,
				   enum l7_fault fault)
{
	dir->fault = fault;
	count(&total->drops, 1);
	tell(index);
	return SK_DROP;
}

struct cut {
	struct __sk_buff *skb;
	__u32 left; /* bytes still to be cut */
};

static long cut_once(__u32 round, void *data)
{
	struct cut *cut = data;
	__u32 n = cut->left < ADJUST_MAX ? cut->left : ADJUST_MAX;

	(void)round;
	if (!n || bpf_skb_adjust_room(cut->skb, -(__s32)n, 0, 0))
		return 1;
	cut->left -= n;
	return 0;
}

/*
 * Cut off the front what was taken before. seq is the sequence number of the first byte of skb.
 * Returns 0, or -1 for a sequence that cannot be mended: a gap, or the helper failed.
 */
static __always_inline int trim(struct __sk_buff *skb, struct l7_direction *dir,
				struct l7_totals *total, const struct tcp_sock *from, __u32 seq)
{
	struct cut cut = { .skb = skb };
	__u32 old;

	if (!dir->seq_known) {
		dir->next_seq = from->copied_seq;
		dir->seq_known = 1;
	}
	old = dir->next_seq - seq;
	dir->next_seq = seq + skb->len;
	if (!old)
		return 0;
	if (old > skb->len) /* a gap is a negative difference, so a huge one */
		return -1;
	count(&total->trims, 1);
	count(&total->trimmed, old);
	cut.left = old;
	bpf_loop(ADJUST_ROUNDS, cut_once, &cut, 0); /* a plain loop costs the verifier 0.1 s */
	return cut.left ? -1 : 0;
}

/* Whether the sink can send, and has room for len bytes and for all that is on its way. */
static __always_inline bool admits(struct l7_direction *dir, const struct tcp_sock *to, __u32 epoch,
				   __u32 len)
{
	const struct sock *sk = &to->inet_conn.icsk_inet.sk;
	__u32 redirected = dir->redirected, written, skbs;
	__u8 state = sk->__sk_common.skc_state;
	__u64 need;

	if (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT)
		return false;
	if (sk->sk_err || sk->sk_shutdown & SEND_SHUTDOWN)
		return false;

	if (dir->base_epoch != epoch) {
		dir->base_seq = to->write_seq - redirected;
		dir->mark = redirected;
		dir->older = 0;
		dir->newer = 0;
		dir->base_epoch = epoch;
	}
	written = to->write_seq - dir->base_seq;
	barrier(); /* write_seq before sk_wmem_queued: see "Reads without the lock" */
	if ((__s32)(written - dir->mark) >= 0) { /* all of older is in the write queue */
		dir->older = dir->newer;
		dir->newer = 0;
		dir->mark = redirected;
	}
	skbs = dir->older + dir->newer;
	if (skbs >= limits.backlog_skbs)
		return false;

	need = (__u64)(__u32)sk->sk_wmem_queued + (redirected - written) + len;
	need += (__u64)(skbs + 1) * limits.skb_overhead;
	if (need > (__u64)(__u32)sk->sk_sndbuf + limits.backlog_bytes)
		return false;
	dir->newer++;
	return true;
}

/* Whether skb may go to the sink now: the gate, the limit, then admission. */
static __always_inline bool redirectable(struct l7_direction *dir, __u64 aim, __u64 limit,
					 __u32 len)
{
	__u32 sink = L7_AIM_SINK(aim);
	struct bpf_sock *sk;
	struct tcp_sock *to;
	bool yes = false;

	if (!aim || dir->passed != *(volatile __u64 *)&dir->relayed)
		return false;
	if (dir->redirected + dir->passed + len > limit)
		return false;
	sk = bpf_map_lookup_elem(&socks, &sink);
	if (!sk)
		return false;
	to = bpf_skc_to_tcp_sock(sk);
	if (to)
		yes = admits(dir, to, L7_AIM_EPOCH(aim), len);
	bpf_sk_release(sk);
	return yes;
}

static __always_inline int pass(struct l7_direction *dir, struct l7_totals *total, __u32 index,
				__u64 aim, __u64 limit, __u32 len)
{
	__u64 before;

	dir->base_epoch = 0; /* user space is going to write to the sink */
	count(&total->passed, len);
	before = __sync_fetch_and_add(&dir->passed, len);
	/* at the limit it has had its event, or has itself relayed the last byte before it */
	if (aim && dir->redirected + before < limit && before == *(volatile __u64 *)&dir->relayed) {
		count(&total->overflows, 1);
		tell(index);
	}
	return SK_PASS;
}

static __always_inline int decide(struct __sk_buff *skb, __u32 seq)
{
	__u64 cookie = bpf_get_socket_cookie(skb), aim, limit;
	__u32 cpu = bpf_get_smp_processor_id(), index, len;
	struct l7_direction *dir;
	struct l7_totals *total;
	struct bpf_sock *sk;
	struct tcp_sock *from;
	__u32 *found;

	found = bpf_map_lookup_elem(&index_of, &cookie);
	if (!found) /* never for a spliced socket: its cookie is published before it is inserted */
		return SK_PASS;
	index = *found;
	dir = bpf_map_lookup_elem(&directions, &index);
	total = bpf_map_lookup_elem(&totals, &cpu);
	if (!dir || !total)
		return SK_PASS;

	if (dir->fault) {
		count(&total->drops, 1);
		return SK_DROP;
	}
	sk = skb->sk;
	from = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	if (!from)
		return give_up(dir, total, index, L7_BROKEN);
	if (from->urg_data)
		return give_up(dir, total, index, L7_URGENT);
	if (trim(skb, dir, total, from, seq))
		return give_up(dir, total, index, L7_BROKEN);
	len = skb->len;
	if (!len) /* the FIN, alone or behind bytes that were taken before: fact 3 */
		return SK_DROP;

	aim = *(volatile __u64 *)&dir->aim;
	limit = *(volatile __u64 *)&dir->limit;
	if (!redirectable(dir, aim, limit, len) ||
	    bpf_sk_redirect_map(skb, &socks, L7_AIM_SINK(aim), 0) != SK_PASS)
		return pass(dir, total, index, aim, limit, len);
	dir->redirected += len;
	count(&total->redirected[index & 1], len);
	if (dir->redirected + dir->passed == limit)
		tell(index);
	return SK_PASS;
}

/*
 * Two ways to the sequence number, TCP_SKB_CB(skb)->seq, which __sk_buff does not show. The loader
 * tries the first and takes the second where the kernel has no such kfuncs.
 */
SEC("sk_skb/stream_verdict")
int verdict(struct __sk_buff *ctx) /* Linux 6.2 and later */
{
	struct sk_buff *skb = bpf_cast_to_kern_ctx(ctx);
	struct tcp_skb_cb *cb = bpf_rdonly_cast(skb->cb, bpf_core_type_id_kernel(struct tcp_skb_cb));

	return decide(ctx, cb->seq);
}

SEC("sk_skb/stream_verdict")
int verdict_probe(struct __sk_buff *ctx) /* the context is the sk_buff, to helpers */
{
	__u32 seq;

	if (bpf_probe_read_kernel(&seq, sizeof(seq),
				  (void *)ctx + bpf_core_field_offset(struct sk_buff, cb) +
					  bpf_core_field_offset(struct tcp_skb_cb, seq)))
		return SK_PASS;
	return decide(ctx, seq);
}

/* bpf_sk_redirect_map() is for everybody, bpf_skc_to_tcp_sock() and bpf_probe_read_kernel() are not. */
char _license[] SEC("license") = "GPL";
