//! An HTTP/1.1 upstream of a test's own making: when it reads, what it writes and how it ends are
//! the test's, byte by byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpSocket;

/// Longest wait for the next byte of a request.
const SILENCE_MAX: Duration = Duration::from_secs(4);
/// Socket buffers of a narrow upstream: little is under way that nobody has read.
const NARROW_BYTES: u32 = 16 * 1024;

/// An upstream that serves each connection on a thread of its own, ended when it goes out of scope.
pub struct RawUpstream {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

/// A connection that an upstream serves.
pub struct Wire {
    /// The socket. What was read ahead of it is with the wire.
    pub stream: TcpStream,
    ahead: Vec<u8>,
}

/// A request body as it arrived.
#[derive(Debug, Default)]
pub struct Taken {
    /// The bytes, chunked framing taken off.
    pub body: Vec<u8>,
    /// Whether it reached its proper end.
    pub complete: bool,
    /// What stood in the place of the framing.
    pub malformed: Option<String>,
}

impl RawUpstream {
    /// Starts an upstream on a port that is free.
    #[must_use]
    pub fn start(serve: impl Fn(Wire) + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("a loopback port"), serve)
    }

    /// The same with small socket buffers.
    #[must_use]
    pub fn start_narrow(serve: impl Fn(Wire) + Send + Sync + 'static) -> Self {
        // A listener's buffer sizes are those of the connections that it accepts.
        let listener = in_runtime(async {
            let socket = narrow_socket();
            socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a loopback port");
            socket.listen(16).expect("a listener").into_std().expect("a listener")
        });
        listener.set_nonblocking(false).expect("an open socket");
        Self::on(listener, serve)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn on(listener: TcpListener, serve: impl Fn(Wire) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().expect("a bound address");
        let stopped = Arc::new(AtomicBool::new(false));
        let (stop, serve) = (stopped.clone(), Arc::new(serve));
        let accepting = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let serve = serve.clone();
                std::thread::spawn(move || serve(Wire::over(stream)));
            }
        });
        Self { address, stopped, accepting: Some(accepting) }
    }
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the accept, which then sees that it is over.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Wire {
    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("an open socket");
        stream.set_read_timeout(Some(SILENCE_MAX)).expect("a valid timeout");
        stream.set_write_timeout(Some(SILENCE_MAX)).expect("a valid timeout");
        Self { stream, ahead: Vec::new() }
    }

    /// The next request head, without the blank line; `None` if the connection ended before.
    pub fn head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Some(String::from_utf8_lossy(&head).into_owned());
            }
            head.extend_from_slice(&line);
            head.extend_from_slice(b"\r\n");
        }
    }

    /// Whatever comes next; nothing at the end, on an error and after too long a silence.
    pub fn some(&mut self) -> Vec<u8> {
        if !self.ahead.is_empty() {
            return std::mem::take(&mut self.ahead);
        }
        let mut buffer = vec![0; 64 * 1024];
        let length = self.stream.read(&mut buffer).unwrap_or(0);
        buffer.truncate(length);
        buffer
    }

    /// A body of known length.
    pub fn body(&mut self, length: usize) -> Taken {
        let mut taken = Taken::default();
        while taken.body.len() < length {
            let some = self.some();
            if some.is_empty() {
                return taken;
            }
            let wanted = some.len().min(length - taken.body.len());
            taken.body.extend_from_slice(&some[..wanted]);
            self.ahead.extend_from_slice(&some[wanted..]);
        }
        taken.complete = true;
        taken
    }

    /// A chunked body, read as strictly as RFC 9112, section 7.1, is written.
    pub fn chunked_body(&mut self) -> Taken {
        let mut taken = Taken::default();
        loop {
            let Some(line) = self.line() else { return taken };
            let size = std::str::from_utf8(&line).ok();
            let Some(size) = size.and_then(|size| usize::from_str_radix(size, 16).ok()) else {
                taken.malformed = Some(format!("chunk size {}", shown(&line)));
                return taken;
            };
            let piece = self.body(size);
            taken.body.extend_from_slice(&piece.body);
            if !piece.complete {
                return taken;
            }
            match self.line() {
                None => return taken,
                Some(line) if !line.is_empty() => {
                    taken.malformed = Some(format!("after a chunk {}", shown(&line)));
                    return taken;
                }
                Some(_) if size == 0 => {
                    taken.complete = true;
                    return taken;
                }
                Some(_) => {}
            }
        }
    }

    /// Writes bytes; false if the other side did not take them all.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            let some = self.some();
            if some.is_empty() {
                return None;
            }
            let before = line.len();
            line.extend_from_slice(&some);
            // The two bytes of the line's end may have come apart.
            let searched = before.saturating_sub(1);
            if let Some(at) = line[searched..].windows(2).position(|pair| pair == b"\r\n") {
                self.ahead = line.split_off(searched + at + 2);
                line.truncate(searched + at);
                return Some(line);
            }
        }
    }
}

/// The beginning of what stands in the place of framing.
fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(60)].escape_ascii().to_string()
}

/// A client's connection with small socket buffers.
///
/// # Panics
/// If nobody listens.
#[must_use]
pub fn connect_narrow(address: SocketAddr) -> TcpStream {
    let stream = in_runtime(async {
        let stream = narrow_socket().connect(address).await.expect("somebody listens");
        stream.into_std().expect("a connection")
    });
    stream.set_nonblocking(false).expect("an open socket");
    stream.set_nodelay(true).expect("an open socket");
    stream
}

fn narrow_socket() -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(NARROW_BYTES).expect("a valid size");
    socket.set_send_buffer_size(NARROW_BYTES).expect("a valid size");
    socket
}

/// The standard library cannot set buffer sizes before a socket is connected; tokio can, but wants
/// a runtime around it.
fn in_runtime<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    runtime.expect("a runtime").block_on(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1;

    #[test]
    fn framing_is_told_from_a_body() {
        let cases: &[(&str, &str, bool, bool)] = &[
            ("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "abcde", true, false),
            ("3\r\nabc\r\n2\r\nd", "abcd", false, false),
            ("3\r\nabc\r\n", "abc", false, false),
            ("3\r\nabcde\r\n0\r\n\r\n", "abc", false, true),
            ("3\r\nabc\r\nxyz\r\n0\r\n\r\n", "abc", false, true),
        ];
        for (bytes, body, complete, malformed) in cases {
            let (report, reports) = std::sync::mpsc::sync_channel(1);
            let upstream = RawUpstream::start_narrow(move |mut wire| {
                let head = wire.head();
                let taken = wire.chunked_body();
                let _ = report.send((head, taken));
            });
            let request = format!("POST / HTTP/1.1\r\nhost: a\r\n\r\n{bytes}");
            let mut stream = http1::connect(upstream.address());
            for piece in request.as_bytes().chunks(7) {
                stream.write_all(piece).expect("an open connection");
            }
            drop(stream);
            let (head, taken) = reports.recv().expect("a report");
            assert_eq!(head.as_deref(), Some("POST / HTTP/1.1\r\nhost: a\r\n"));
            assert_eq!(
                (taken.body, taken.complete, taken.malformed.is_some()),
                (body.as_bytes().to_vec(), *complete, *malformed),
                "{bytes:?}"
            );
        }
    }
}
