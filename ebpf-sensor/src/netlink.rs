//! The three things to ask of rtnetlink that nobody here does for us: what kind of link it is, whether
//! filters hang on it, and to take an empty clsact away.
//!
//! Source: rtnetlink(7), linux/rtnetlink.h, linux/pkt_sched.h.

use std::io;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;
/// The qdisc `ffff:`, and its two sides.
const CLSACT: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;
const CLSACT_SIDES: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
/// What the kernel sends at once, at most.
const ANSWER_BYTES_MAX: usize = 65_536;
/// Datagrams of one answer: a link has a handful of filters.
const ANSWERS_MAX: usize = 64;

/// The link's type, `ARPHRD_*` of linux/if_arp.h.
///
/// # Errors
/// When there is no such link, or the kernel does not answer.
pub fn link_type(index: u32) -> io::Result<u16> {
    // struct ifinfomsg
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut found = None;
    ask(RTM_GETLINK, 0, &body, |kind, message| {
        if kind == RTM_NEWLINK
            && let Some(bytes) = message.get(2..4)
        {
            found = Some(u16::from_ne_bytes([bytes[0], bytes[1]]));
        }
    })?;
    found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// Takes the link's clsact away unless filters hang on it; tells whether it did.
///
/// # Errors
/// When the kernel refuses, or does not answer.
pub fn remove_empty_clsact(index: u32) -> io::Result<bool> {
    let mut filters = 0_u32;
    for side in CLSACT_SIDES {
        ask(RTM_GETTFILTER, NLM_F_DUMP, &traffic_control(index, 0, side), |kind, _| {
            filters += u32::from(kind == RTM_NEWTFILTER);
        })?;
    }
    if filters > 0 {
        return Ok(false);
    }
    ask(RTM_DELQDISC, NLM_F_ACK, &traffic_control(index, CLSACT, CLSACT_PARENT), |_, _| {})?;
    Ok(true)
}

/// struct tcmsg
fn traffic_control(index: u32, handle: u32, parent: u32) -> [u8; 20] {
    let mut body = [0; 20];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&handle.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    body
}

/// Sends one request and gives each message of its answer to `take`: its type, and what follows its
/// header.
fn ask(kind: u16, flags: u16, body: &[u8], mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let socket = open()?;
    let mut request = Vec::with_capacity(HEADER + body.len());
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    request.extend_from_slice(&1_u32.to_ne_bytes());
    request.extend_from_slice(&0_u32.to_ne_bytes());
    request.extend_from_slice(body);
    let kernel = SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, &request, SendFlags::empty(), &kernel)?;
    let several = flags & NLM_F_DUMP != 0;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    for _ in 0..ANSWERS_MAX {
        let (read, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = buffer.get(..read).unwrap_or_default();
        while let Some((kind, message, after)) = split(rest) {
            rest = after;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return outcome(message),
                _ => take(kind, message),
            }
        }
        if !several {
            return Ok(());
        }
    }
    Err(io::Error::other("the kernel's answer does not end"))
}

fn open() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    // The protocol of number nought is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(2)))?;
    Ok(socket)
}

/// The first message's type, what follows its header, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let head = bytes.first_chunk::<HEADER>()?;
    let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
    let length = usize::try_from(length).ok()?;
    let message = bytes.get(HEADER..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([head[4], head[5]]), message, after))
}

/// struct nlmsgerr: a negative errno, or nought of success.
fn outcome(message: &[u8]) -> io::Result<()> {
    let code = message.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_loopback_link_has_its_type() {
        // ARPHRD_LOOPBACK
        assert_eq!(link_type(1).unwrap(), 772);
        assert!(link_type(u32::MAX / 2).is_err());
    }

    #[test]
    fn an_error_is_the_kernels() {
        let code = (-13_i32).to_ne_bytes();
        assert_eq!(outcome(&code).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        outcome(&0_i32.to_ne_bytes()).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut rest = &bytes[..];
            while let Some((_, message, after)) = split(rest) {
                prop_assert!(message.len() + after.len() < rest.len());
                rest = after;
            }
        }
    }
}
