/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the verdict program shares with user space (l7proxy/datapath/sockmap.py and selftest.py).
 *
 * All of it lies in memory-mapped arrays: every field is read and written with one aligned load or
 * store, has one writer, and the lines that the kernel writes are not the lines that user space
 * writes.
 */
#ifndef L7PROXY_H
#define L7PROXY_H

#include <linux/types.h>

#define L7_LINE 64 /* bytes of a cache line */

/* Why a direction was given up; bits of l7_direction.fault. */
enum l7_fault {
	L7_BROKEN = 1, /* a gap, a sequence number out of reach, or a helper that failed */
	L7_URGENT = 2, /* urgent data: it would go in-band, unseen by layer 7 */
};

/*
 * One direction: the bytes that arrive on the socket at this index. Even indices are clients.
 *
 * redirected, passed and relayed count bytes from 0 at the insertion. passed >= relayed always, and
 * while they differ every byte is passed: that is what keeps the order across the two ways.
 *
 * redirected + passed is how far the stream has come: the position of its next byte. limit is such
 * a position, so it means the same however many of the bytes before it user space relays.
 */
struct l7_direction {
	/* written by the verdict, serialised by the lock of the socket that the bytes arrive on */
	__u64 redirected; /* handed to a sink's queue by the kernel */
	__u64 passed;     /* left to user space */
	__u64 fault;      /* enum l7_fault; once set, everything is dropped */
	__u32 next_seq;   /* the sequence number that the next new byte has */
	__u32 base_seq;   /* the sink's write_seq minus redirected, when nothing was in flight */
	__u32 base_epoch;  /* the epoch of aim that base_seq is for; 0: it is not set, or passed since */
	__u32 mark;       /* low half of redirected at the last turn of the two counts below */
	__u16 older;      /* skbs redirected before mark and perhaps still in flight */
	__u16 newer;      /* skbs redirected since */
	__u8 seq_known;   /* next_seq is set */
	__u8 unused[19];

	/* written by user space */
	__u64 relayed __attribute__((aligned(L7_LINE))); /* of passed: written to the sink */
	__u64 aim;   /* L7_AIM(epoch, index of the sink); 0, unarmed: everything is passed, no event */
	__u64 limit; /* the position up to which bytes may be redirected; L7_NO_LIMIT for a pair */
} __attribute__((aligned(2 * L7_LINE)));

/*
 * One word, so that the verdict never sees the sink of one arming with the epoch of another. The
 * epoch is not 0, and no direction has the same one twice running.
 */
#define L7_AIM_SINK(aim) ((__u32)(aim))
#define L7_AIM_EPOCH(aim) ((__u32)((aim) >> 32))
#define L7_AIM(epoch, sink) ((__u64)(epoch) << 32 | (sink))
#define L7_NO_LIMIT (~0ULL)

/* What one CPU did, all directions together. Only ever added to, atomically. */
struct l7_totals {
	__u64 redirected[2]; /* bytes; [0] from clients, [1] from backends */
	__u64 passed;        /* bytes */
	__u64 overflows;     /* events sent for a first pass */
	__u64 trims;         /* skbs with bytes at the front that had been taken before */
	__u64 trimmed;       /* those bytes */
	__u64 drops;         /* skbs dropped because their direction has a fault */
} __attribute__((aligned(2 * L7_LINE)));

/* A record of the ring: this direction was passed first, came to its limit, or got a fault. */
struct l7_event {
	__u32 index;
};

/* Set by the loader before the program is loaded. */
struct l7_limits {
	__u32 backlog_bytes; /* how far redirected bytes may exceed the room in the send queue */
	__u32 backlog_skbs;  /* redirected skbs that may be on their way to the send queue */
	__u32 skb_overhead;  /* bytes of send buffer that one skb is assumed to cost beyond its data */
};

#endif /* L7PROXY_H */
