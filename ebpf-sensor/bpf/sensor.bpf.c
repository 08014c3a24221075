/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * How hosts resolve names, seen in the kernel (T-DIST-006). These programs only look: each lets every
 * packet and call go on as it is. They decide by ports and by what a packet is (RFC 768, 791, 8200,
 * 9000, 9293); what payloads mean is user space's to find out.
 *
 * An event is written straight into the ring, never through memory of its own: on a preemptible kernel
 * another of these programs may run on the same processor before one has ended.
 */
#include "kernel.h"

char LICENSE[] SECTION("license") = "GPL";

/* The layout that user space reads: event.rs. */
#define LAYOUT 1
#define CAPTURED_MAX 4096
struct event {
  u64 at_ns, cookie, cgroup;
  u32 pid, uid, ifindex, offset, length;
  u16 captured, source_port, destination_port;
  u8 kind, hook, protocol, family, flags, layout;
  u8 source[16], destination[16];
  char name[16];
};
_Static_assert(sizeof(struct event) == 104, "event.rs reads 104 bytes");
enum { QUERY = 1, ANSWER, OPEN, STREAM, INITIAL };
enum {
  CGROUP_CONNECT = 1, CGROUP_SENDMSG, CGROUP_EGRESS, CGROUP_INGRESS, CLIENTS_INGRESS, CLIENTS_EGRESS,
  INTERNET_INGRESS, FENTRY, KPROBE, SOCK_STATE,
};
#define OWNER_KNOWN 1

/* Room for what comes while user space reads a batch: some 17,000 queries. */
struct {
  MAP_TYPE(MAP_RINGBUF);
  MAP_ENTRIES(1 << 22);
} EVENTS SECTION(".maps");

enum { EMITTED, DROPPED, SUPPRESSED, COUNTERS_LEN };
struct {
  MAP_TYPE(MAP_PERCPU_ARRAY);
  MAP_ENTRIES(COUNTERS_LEN);
  MAP_KEY(u32);
  MAP_VALUE(u64);
} COUNTERS SECTION(".maps");

/* Which calls of local processes are told of. None are where their packets are seen (cgroup_skb): then
 * the hooks of calls only say whose socket it is. Two hooks that see the same call are not both told of:
 * what they know of its source differs. */
#define TELL_TCP_CALLS 1 /* cgroup connect */
#define TELL_UDP_CALLS 2 /* cgroup connect, sendmsg */
#define TELL_TCP_STATE 4
#define TELL_UDP_SEND 8 /* fentry, kprobe */
struct {
  MAP_TYPE(MAP_ARRAY);
  MAP_ENTRIES(1);
  MAP_KEY(u32);
  MAP_VALUE(u32);
} TELL SECTION(".maps");

/* Bytes before the IP header on each link that we are attached to. */
struct {
  MAP_TYPE(MAP_HASH);
  MAP_ENTRIES(256);
  MAP_KEY(u32);
  MAP_VALUE(u32);
} LINKS SECTION(".maps");

/* Whose socket it is, by its cookie. */
struct owner {
  u64 cgroup;
  u32 pid, uid;
  char name[16];
};
struct {
  MAP_TYPE(MAP_LRU_HASH);
  MAP_ENTRIES(65536);
  MAP_KEY(u64);
  MAP_VALUE(struct owner);
} OWNERS SECTION(".maps");

struct flow {
  u8 source[16], destination[16];
  u16 source_port, destination_port;
  u32 tag; /* protocol, and in the upper half the DNS id, or part of the process id */
};

/* What was told a moment ago, and when. */
#define AGAIN_NS 1000000000ull
struct {
  MAP_TYPE(MAP_LRU_HASH);
  MAP_ENTRIES(65536);
  MAP_KEY(struct flow);
  MAP_VALUE(u64);
} RECENT SECTION(".maps");

/* Streams and QUIC connections whose beginning is copied. A flow belongs to the hook that saw it first:
 * the packets of a container may pass a cgroup and a bridge. User space deletes whatever it has read
 * enough of. */
#define STREAM_MAX 16384
#define INITIALS_MAX 8
#define INITIALS_NS 10000000000ull
struct stream {
  u64 since_ns;
  u32 first; /* sequence number of the first byte; of QUIC: datagrams so far */
  u32 hook;
};
struct {
  MAP_TYPE(MAP_LRU_HASH);
  MAP_ENTRIES(65536);
  MAP_KEY(struct flow);
  MAP_VALUE(struct stream);
} STREAMS SECTION(".maps");

/* User space looks by itself, every few milliseconds. */
#define NO_WAKEUP 1

INLINE u16 swap(u16 value) { return __builtin_bswap16(value); }

INLINE void count(u32 which) {
  u64 *counter = map_lookup(&COUNTERS, &which);
  if (counter) *counter += 1;
}

INLINE void copy16(u8 *to, const void *from) { __builtin_memcpy(to, from, 16); }

/* IPv4 as IPv4-mapped IPv6; `ip` in network order. */
INLINE void mapped(u8 *to, u32 ip) {
  u32 words[4] = {0, 0, 0xffff0000, ip};
  copy16(to, words);
}

INLINE int tells(u32 what) {
  u32 zero = 0, *tell = map_lookup(&TELL, &zero);
  return tell && *tell & what;
}

/* Whether the same was told within the last second, which it is now. */
INLINE int told(const struct flow *flow) {
  u64 now = ktime_boot_ns(), *before = map_lookup(&RECENT, flow);
  if (before && now - *before < AGAIN_NS) {
    count(SUPPRESSED);
    return 1;
  }
  map_update(&RECENT, flow, &now, 0);
  return 0;
}

/* A header for what happens now; all of it is written. */
INLINE void begin(struct event *event, u8 kind, u8 hook, const struct flow *flow) {
  __builtin_memset(event, 0, sizeof *event);
  event->at_ns = ktime_boot_ns();
  event->kind = kind;
  event->hook = hook;
  event->layout = LAYOUT;
  event->protocol = flow->tag;
  event->source_port = flow->source_port;
  event->destination_port = flow->destination_port;
  copy16(event->source, flow->source);
  copy16(event->destination, flow->destination);
}

INLINE void owned(struct event *event, u64 cookie, const struct owner *owner) {
  event->cookie = cookie;
  event->flags |= OWNER_KNOWN;
  event->cgroup = owner->cgroup;
  event->pid = owner->pid;
  event->uid = owner->uid;
  copy16((u8 *)event->name, owner->name);
}

INLINE void current(struct owner *owner) {
  __builtin_memset(owner, 0, sizeof *owner);
  owner->cgroup = current_cgroup_id();
  owner->pid = current_pid_tgid() >> 32;
  owner->uid = (u32)current_uid_gid();
  current_comm(owner->name, sizeof owner->name);
}

/* Hands over a header without payload. */
INLINE void emit(const struct event *event) {
  struct event *record = ringbuf_reserve(&EVENTS, sizeof *record, 0);
  if (!record) {
    count(DROPPED);
    return;
  }
  *record = *event;
  ringbuf_submit(record, NO_WAKEUP);
  count(EMITTED);
}

/* Hands over a header and the `size` bytes of the packet at `from`, in a record of the next size. What
 * a record has beyond `captured` is not read. A power of two bounds the length for every verifier. */
#define EMIT_UP_TO(room)                                                                              \
  do {                                                                                                \
    struct {                                                                                          \
      struct event head;                                                                              \
      u8 payload[room];                                                                               \
    } *record = ringbuf_reserve(&EVENTS, sizeof *record, 0);                                          \
    if (!record) {                                                                                    \
      count(DROPPED);                                                                                 \
      return 0;                                                                                       \
    }                                                                                                 \
    record->head = *event;                                                                            \
    u32 bounded = size;                                                                               \
    asm volatile("" : "+r"(bounded));                                                                 \
    bounded = ((bounded - 1) & (room - 1)) + 1;                                                       \
    record->head.captured = skb_load_bytes(skb, from, record->payload, bounded) ? 0 : bounded;        \
    ringbuf_submit(record, NO_WAKEUP);                                                                \
    count(EMITTED);                                                                                   \
  } while (0)

NOINLINE int emit_payload(struct __sk_buff *skb, struct event *event, u32 from, u32 size) {
  if (size == 0 || size > CAPTURED_MAX) return 0;
  if (size <= 128)
    EMIT_UP_TO(128);
  else if (size <= 512)
    EMIT_UP_TO(512);
  else if (size <= 2048)
    EMIT_UP_TO(2048);
  else
    EMIT_UP_TO(CAPTURED_MAX);
  return 0;
}

/* ---- packets ---- */

struct packet {
  struct flow flow;
  u32 payload, length; /* where it begins in the buffer, and its bytes */
  u32 sequence;
  u8 tcp_flags;
};
enum { TCP = 6, UDP = 17, TCP_SYN = 2, TCP_ACK = 16 };
enum { IP4 = 0x0800, IP6 = 0x86dd, VLAN = 0x8100, VLAN_OUTER = 0x88a8 };
#define EXTENSIONS_MAX 8

/* Which way packets go that a program looks at. */
enum { OUTBOUND, INBOUND };

/* Whether nothing is looked at of a packet with these ports. Of what is sent by TCP, its opening is. */
INLINE int is_other(const struct packet *packet, u32 protocol, u32 way) {
  u16 port = packet->flow.destination_port;
  if (way == INBOUND) return packet->flow.source_port != 53;
  return protocol == UDP && port != 53 && port != 443 && port != 853;
}

/* Reads the headers of a packet whose IP header begins at `at`; 0 if it is one to look at, and whole
 * enough. Of fragments only the first has the ports. */
NOINLINE int parse(struct __sk_buff *skb, struct packet *packet, u32 at, u32 ethertype, u32 way) {
  u32 end, protocol;
  if (ethertype == IP4) {
    struct {
      u8 version_length, tos;
      u16 length, id, fragment;
      u8 ttl, protocol;
      u16 checksum;
      u32 source, destination;
    } ip;
    if (skb_load_bytes(skb, at, &ip, sizeof ip)) return -1;
    if (swap(ip.fragment) & 0x1fff) return -1;
    mapped(packet->flow.source, ip.source);
    mapped(packet->flow.destination, ip.destination);
    protocol = ip.protocol;
    end = at + swap(ip.length);
    at += (ip.version_length & 15) * 4;
  } else if (ethertype == IP6) {
    struct {
      u32 version_class_flow;
      u16 length;
      u8 next, hops, source[16], destination[16];
    } ip;
    if (skb_load_bytes(skb, at, &ip, sizeof ip)) return -1;
    copy16(packet->flow.source, ip.source);
    copy16(packet->flow.destination, ip.destination);
    protocol = ip.next;
    at += sizeof ip;
    /* No length: a packet that is still to be cut, or a jumbogram. */
    end = ip.length ? at + swap(ip.length) : skb->len;
#pragma unroll
    for (int i = 0; i < EXTENSIONS_MAX; i++) {
      u8 header[4];
      if (protocol == TCP || protocol == UDP) break;
      if (skb_load_bytes(skb, at, header, sizeof header)) return -1;
      switch (protocol) {
      case 0: case 43: case 60: /* hop-by-hop, routing, destination options */
        at += (header[1] + 1) * 8;
        break;
      case 44: /* fragment */
        if ((header[2] << 8 | header[3]) & 0xfff8) return -1;
        at += 8;
        break;
      case 51: /* authentication, RFC 4302 */
        at += (header[1] + 2) * 4;
        break;
      default:
        return -1;
      }
      protocol = header[0];
    }
  } else
    return -1;
  u16 ports[2];
  if (skb_load_bytes(skb, at, ports, sizeof ports)) return -1;
  packet->flow.source_port = swap(ports[0]);
  packet->flow.destination_port = swap(ports[1]);
  packet->flow.tag = protocol;
  if (is_other(packet, protocol, way)) return -1;
  if (protocol == TCP) {
    struct {
      u32 sequence, acknowledged;
      u8 offset, flags;
    } tcp;
    if (skb_load_bytes(skb, at + 4, &tcp, 10)) return -1;
    packet->sequence = __builtin_bswap32(tcp.sequence);
    packet->tcp_flags = tcp.flags;
    at += (tcp.offset >> 4) * 4;
  } else if (protocol == UDP)
    at += 8;
  else
    return -1;
  /* Padding of short Ethernet frames is no payload. */
  if (end > skb->len) end = skb->len;
  packet->payload = at;
  packet->length = end > at ? end - at : 0;
  return 0;
}

INLINE void head(struct event *event, struct __sk_buff *skb, const struct packet *packet, u8 kind,
                 u8 hook) {
  begin(event, kind, hook, &packet->flow);
  event->ifindex = skb->ifindex;
  event->length = packet->length;
  if (hook == CGROUP_EGRESS) {
    u64 cookie = socket_cookie(skb);
    struct owner *owner = map_lookup(&OWNERS, &cookie);
    if (owner) owned(event, cookie, owner);
  }
}

/* Port 53: a datagram is one message. */
INLINE void message(struct __sk_buff *skb, struct packet *packet, u8 kind, u8 hook) {
  struct {
    u16 id;
    u8 flags;
  } dns;
  if (packet->length < 12 || skb_load_bytes(skb, packet->payload, &dns, 3)) return;
  if ((kind == ANSWER) != (dns.flags >> 7)) return;
  if (kind == QUERY) {
    packet->flow.tag |= (u32)dns.id << 16;
    if (told(&packet->flow)) return;
  }
  struct event event;
  head(&event, skb, packet, kind, hook);
  u32 size = packet->length;
  emit_payload(skb, &event, packet->payload, size > CAPTURED_MAX ? CAPTURED_MAX : size);
}

INLINE void open(struct __sk_buff *skb, struct packet *packet, u8 hook) {
  struct flow hosts = packet->flow;
  hosts.source_port = 0;
  if (told(&hosts)) return;
  struct event event;
  head(&event, skb, packet, OPEN, hook);
  emit(&event);
}

INLINE int is_quic_initial(const u8 *first) {
  u32 version = (u32)first[1] << 24 | (u32)first[2] << 16 | (u32)first[3] << 8 | first[4];
  return (version == 1 && (first[0] & 0xf0) == 0xc0) ||         /* RFC 9000 */
         (version == 0x6b3343cf && (first[0] & 0xf0) == 0xd0);  /* RFC 9369 */
}

/* UDP to port 443 or 853: QUIC, of which the first packets are readable, and whatever else is DoQ's. */
INLINE void datagram(struct __sk_buff *skb, struct packet *packet, u8 hook) {
  u8 first[5] = {};
  int initial = packet->length >= 1200 && !skb_load_bytes(skb, packet->payload, first, 5) &&
                is_quic_initial(first);
  if (!initial) {
    if (packet->flow.destination_port == 853) open(skb, packet, hook);
    return;
  }
  u64 now = ktime_boot_ns();
  struct stream *known = map_lookup(&STREAMS, &packet->flow);
  if (known && now - known->since_ns < INITIALS_NS) {
    if (known->hook != hook || known->first >= INITIALS_MAX) return;
    known->first += 1;
  } else {
    struct stream fresh = {now, 1, hook};
    map_update(&STREAMS, &packet->flow, &fresh, 0);
  }
  struct event event;
  head(&event, skb, packet, INITIAL, hook);
  /* Local programs may hand several datagrams over as one packet (UDP GSO). */
  u32 size = packet->length;
  emit_payload(skb, &event, packet->payload, size > CAPTURED_MAX ? CAPTURED_MAX : size);
}

/* TCP: a connection that is opened, and the beginning of what it carries to ports 53, 443 and 853. */
INLINE void segment(struct __sk_buff *skb, struct packet *packet, u8 hook) {
  u16 port = packet->flow.destination_port;
  int copied = port == 53 || port == 443 || port == 853;
  if ((packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
    if (copied) {
      struct stream *known = map_lookup(&STREAMS, &packet->flow);
      /* A container's packet may pass two hooks; a port is not used again within a second. */
      u64 now = ktime_boot_ns();
      if (!known || now - known->since_ns >= AGAIN_NS) {
        struct stream fresh = {now, packet->sequence + 1, hook};
        map_update(&STREAMS, &packet->flow, &fresh, 0);
      }
    }
    packet->sequence += 1; /* of the data that a SYN may carry, RFC 7413 */
    open(skb, packet, hook);
  }
  if (!copied || !packet->length) return;
  struct stream *stream = map_lookup(&STREAMS, &packet->flow);
  if (!stream || stream->hook != hook) return;
  u32 offset = packet->sequence - stream->first;
  if (offset >= STREAM_MAX) return;
  struct event event;
  head(&event, skb, packet, STREAM, hook);
  u32 from = packet->payload, left = packet->length;
  if (left > STREAM_MAX - offset) left = STREAM_MAX - offset;
  /* The kernel hands large writes over as one packet of up to 64 KiB. */
#pragma unroll
  for (int i = 0; i < STREAM_MAX / CAPTURED_MAX; i++) {
    u32 size = left > CAPTURED_MAX ? CAPTURED_MAX : left;
    if (!size) return;
    event.offset = offset;
    emit_payload(skb, &event, from, size);
    offset += size;
    from += size;
    left -= size;
  }
}

/* What clients send. */
INLINE void outbound(struct __sk_buff *skb, struct packet *packet, u8 hook) {
  u16 port = packet->flow.destination_port;
  if (packet->flow.tag == TCP)
    segment(skb, packet, hook);
  else if (port == 53)
    message(skb, packet, QUERY, hook);
  else
    datagram(skb, packet, hook);
}

/* What comes back: only answers of plain DNS are of interest. */
INLINE void inbound(struct __sk_buff *skb, struct packet *packet, u8 hook) {
  if (packet->flow.tag == UDP) {
    message(skb, packet, ANSWER, hook);
    return;
  }
  if (!packet->length) return;
  struct event event;
  head(&event, skb, packet, ANSWER, hook);
  event.offset = packet->sequence;
  u32 size = packet->length;
  emit_payload(skb, &event, packet->payload, size > CAPTURED_MAX ? CAPTURED_MAX : size);
}

/* Finds the IP header on a link: behind an Ethernet header and its VLAN tags, or at once (tun, wg). */
INLINE int network(struct __sk_buff *skb, u32 *at) {
  u32 ifindex = skb->ifindex, *before = map_lookup(&LINKS, &ifindex);
  *at = before ? *before : 14;
  if (!*at) return swap(skb->protocol);
  u16 type;
  if (skb_load_bytes(skb, 12, &type, 2)) return 0;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (type != swap(VLAN) && type != swap(VLAN_OUTER)) break;
    if (skb_load_bytes(skb, *at + 2, &type, 2)) return 0;
    *at += 4;
  }
  return swap(type);
}

/* A filter of clsact is known by its program's name, and outlives us if we are killed: hence the prefix.
 */
enum { TC_NEXT = -1 }; /* TC_ACT_UNSPEC, TCX_NEXT: others go on as if we were not there */

SECTION("classifier") int stillgate_in(struct __sk_buff *skb) {
  struct packet packet = {};
  u32 at;
  u32 type = network(skb, &at);
  if (!parse(skb, &packet, at, type, OUTBOUND)) outbound(skb, &packet, CLIENTS_INGRESS);
  return TC_NEXT;
}

SECTION("classifier") int stillgate_out(struct __sk_buff *skb) {
  struct packet packet = {};
  u32 at;
  u32 type = network(skb, &at);
  if (!parse(skb, &packet, at, type, INBOUND)) inbound(skb, &packet, CLIENTS_EGRESS);
  return TC_NEXT;
}

SECTION("classifier") int stillgate_wan(struct __sk_buff *skb) {
  struct packet packet = {};
  u32 at;
  u32 type = network(skb, &at);
  if (!parse(skb, &packet, at, type, INBOUND)) inbound(skb, &packet, INTERNET_INGRESS);
  return TC_NEXT;
}

enum { CGROUP_LET = 1 };

SECTION("cgroup_skb/egress") int cgroup_egress(struct __sk_buff *skb) {
  struct packet packet = {};
  if (!parse(skb, &packet, 0, swap(skb->protocol), OUTBOUND))
    outbound(skb, &packet, CGROUP_EGRESS);
  return CGROUP_LET;
}

SECTION("cgroup_skb/ingress") int cgroup_ingress(struct __sk_buff *skb) {
  struct packet packet = {};
  if (!parse(skb, &packet, 0, swap(skb->protocol), INBOUND))
    inbound(skb, &packet, CGROUP_INGRESS);
  return CGROUP_LET;
}

/* ---- sockets: whose they are, and where they go where no packets are seen ---- */

INLINE int of_interest(u16 port, u8 protocol) {
  return protocol == TCP || port == 53 || port == 443 || port == 853;
}

/* Remembers whose socket it is; tells of it if nothing else will. */
INLINE void socket(u64 cookie, struct flow *flow, u8 hook, u32 what) {
  struct owner owner;
  current(&owner);
  if (cookie) map_update(&OWNERS, &cookie, &owner, 0);
  if (!tells(what)) return;
  u16 port = flow->source_port;
  flow->source_port = 0;
  /* Of each process: in namespaces of their own several may have the same address. */
  flow->tag |= owner.pid << 16;
  if (told(flow)) return;
  flow->source_port = port;
  struct event event;
  begin(&event, OPEN, hook, flow);
  owned(&event, cookie, &owner);
  emit(&event);
}

INLINE int address(struct bpf_sock_addr *call, u8 hook, int ip6) {
  u16 port = swap((u16)call->user_port);
  u8 protocol = call->protocol;
  if (!of_interest(port, protocol) || (protocol != TCP && protocol != UDP)) return CGROUP_LET;
  struct flow flow = {};
  flow.destination_port = port;
  flow.tag = protocol;
  if (ip6) {
    u32 words[4] = {call->user_ip6[0], call->user_ip6[1], call->user_ip6[2], call->user_ip6[3]};
    copy16(flow.destination, words);
  } else
    mapped(flow.destination, call->user_ip4);
  struct bpf_sock *sk = call->sk;
  if (sk) {
    flow.source_port = sk->src_port;
    if (sk->family == FAMILY_INET)
      mapped(flow.source, sk->src_ip4);
    else {
      u32 words[4] = {sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3]};
      copy16(flow.source, words);
    }
  }
  socket(socket_cookie(call), &flow, hook, protocol == TCP ? TELL_TCP_CALLS : TELL_UDP_CALLS);
  return CGROUP_LET;
}

SECTION("cgroup/connect4") int cgroup_connect4(struct bpf_sock_addr *call) {
  return address(call, CGROUP_CONNECT, 0);
}
SECTION("cgroup/connect6") int cgroup_connect6(struct bpf_sock_addr *call) {
  return address(call, CGROUP_CONNECT, 1);
}
SECTION("cgroup/sendmsg4") int cgroup_sendmsg4(struct bpf_sock_addr *call) {
  return address(call, CGROUP_SENDMSG, 0);
}
SECTION("cgroup/sendmsg6") int cgroup_sendmsg6(struct bpf_sock_addr *call) {
  return address(call, CGROUP_SENDMSG, 1);
}

#define READ(to, field) \
  probe_read_kernel(&(to), sizeof(to), __builtin_preserve_access_index(&(field)))

/* Both ends of a socket, and its cookie; reads that are allowed in every tracing program. */
INLINE u64 ends(struct sock *sk, struct flow *flow) {
  u16 family = 0, port = 0;
  u64 cookie = 0;
  READ(family, sk->__sk_common.skc_family);
  READ(flow->source_port, sk->__sk_common.skc_num);
  READ(port, sk->__sk_common.skc_dport);
  READ(cookie, sk->__sk_common.skc_cookie);
  flow->destination_port = swap(port);
  if (family == FAMILY_INET6) {
    READ(flow->source, sk->__sk_common.skc_v6_rcv_saddr);
    READ(flow->destination, sk->__sk_common.skc_v6_daddr);
  } else {
    u32 source = 0, destination = 0;
    READ(source, sk->__sk_common.skc_rcv_saddr);
    READ(destination, sk->__sk_common.skc_daddr);
    mapped(flow->source, source);
    mapped(flow->destination, destination);
  }
  return cookie;
}

/* udp_sendmsg(sk, msg, …): the destination is the message's, else the socket's. */
INLINE void send(struct sock *sk, struct msghdr *message, u8 hook) {
  struct flow flow = {};
  struct sockaddr_in6 to = {};
  void *name = 0;
  u64 cookie = ends(sk, &flow);
  flow.tag = UDP;
  READ(name, message->msg_name);
  if (name) {
    if (probe_read_kernel(&to, 8, name)) return;
    flow.destination_port = swap(to.port);
    if (to.family == FAMILY_INET)
      mapped(flow.destination, to.flow_or_ip4);
    else if (to.family == FAMILY_INET6) {
      if (probe_read_kernel(&to, sizeof to, name)) return;
      copy16(flow.destination, to.ip6);
    } else
      return;
  }
  if (of_interest(flow.destination_port, UDP)) socket(cookie, &flow, hook, TELL_UDP_SEND);
}

SECTION("fentry/udp_sendmsg") int fentry_udp(u64 *arguments) {
  send((struct sock *)arguments[0], (struct msghdr *)arguments[1], FENTRY);
  return 0;
}
SECTION("fentry/udpv6_sendmsg") int fentry_udp6(u64 *arguments) {
  send((struct sock *)arguments[0], (struct msghdr *)arguments[1], FENTRY);
  return 0;
}
SECTION("kprobe/udp_sendmsg") int kprobe_udp(struct pt_regs *registers) {
  struct sock *sk = 0;
  struct msghdr *message = 0;
  READ(sk, registers->di);
  READ(message, registers->si);
  send(sk, message, KPROBE);
  return 0;
}
SECTION("kprobe/udpv6_sendmsg") int kprobe_udp6(struct pt_regs *registers) {
  struct sock *sk = 0;
  struct msghdr *message = 0;
  READ(sk, registers->di);
  READ(message, registers->si);
  send(sk, message, KPROBE);
  return 0;
}
enum { TCP_SYN_SENT = 2 };
SECTION("tp_btf/inet_sock_set_state") int sock_state(u64 *arguments) {
  if ((int)arguments[2] != TCP_SYN_SENT) return 0;
  struct sock *sk = (struct sock *)arguments[0];
  struct flow flow = {};
  u64 cookie = ends(sk, &flow);
  flow.tag = TCP;
  socket(cookie, &flow, SOCK_STATE, TELL_TCP_STATE);
  return 0;
}
