/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
 *
 * What the programs need of the kernel, and no more: helper numbers and contexts are stable (uapi
 * linux/bpf.h); fields of other structures are found at load time by their names (CO-RE).
 */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static __attribute__((always_inline)) inline
#define NOINLINE static __attribute__((noinline))
#define CORE __attribute__((preserve_access_index))

/* A map, as BTF describes one. */
#define MAP_TYPE(number) int (*type)[number]
#define MAP_ENTRIES(number) int (*max_entries)[number]
#define MAP_KEY(t) t *key
#define MAP_VALUE(t) t *value
enum { MAP_HASH = 1, MAP_ARRAY = 2, MAP_PERCPU_ARRAY = 6, MAP_LRU_HASH = 9, MAP_RINGBUF = 27 };

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*map_delete)(void *map, const void *key) = (void *)3;
static u64 (*current_pid_tgid)(void) = (void *)14;
static u64 (*current_uid_gid)(void) = (void *)15;
static long (*current_comm)(void *to, u32 size) = (void *)16;
static long (*skb_load_bytes)(const void *skb, u32 from, void *to, u32 size) = (void *)26;
static u64 (*socket_cookie)(void *context) = (void *)46;
static u64 (*current_cgroup_id)(void) = (void *)80;
static long (*probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static u64 (*ktime_boot_ns)(void) = (void *)125;
static void *(*ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*ringbuf_submit)(void *record, u64 flags) = (void *)132;

/* Contexts of the uapi. */
struct __sk_buff {
  u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority,
      ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end, napi_id;
};
struct bpf_sock {
  u32 bound_dev_if, family, type, protocol, mark, priority, src_ip4, src_ip6[4], src_port;
};
struct bpf_sock_addr {
  u32 user_family, user_ip4, user_ip6[4], user_port, family, type, protocol, msg_src_ip4,
      msg_src_ip6[4];
  struct bpf_sock *sk __attribute__((aligned(8)));
};

/* Structures of the kernel, by the names of their fields. */
struct in6_addr {
  union {
    u8 u6_addr8[16];
  } in6_u;
} CORE;
typedef struct {
  s64 counter;
} CORE atomic64_t;
struct sock_common {
  union {
    struct {
      u32 skc_daddr, skc_rcv_saddr;
    };
  };
  union {
    struct {
      u16 skc_dport, skc_num;
    };
  };
  u16 skc_family;
  struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
  atomic64_t skc_cookie;
} CORE;
struct sock {
  struct sock_common __sk_common;
  u16 sk_protocol;
} CORE;
struct msghdr {
  void *msg_name;
} CORE;
struct pt_regs {
  unsigned long di, si;
} CORE;

/* Of the ABI: what user space gives as an address. */
struct sockaddr_in6 {
  u16 family, port;
  u32 flow_or_ip4;
  u8 ip6[16];
};
enum { FAMILY_INET = 2, FAMILY_INET6 = 10 };
