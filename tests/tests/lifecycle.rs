//! Stopping, reloading and replacing the gateway: what is under way ends properly, and what is new
//! finds a gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::http1::{self, Response, TlsStream};
use harness::{Gateway, Provider, http2, streams, wait_for};
use rustix::process::Signal;

const STREAM: &str = "own/openai-chat/text.sse";
/// The stream has some twenty events, so it runs for about two seconds.
const PACED: &str = "stream=own/openai-chat/text.sse;chunks=paced:100";

#[test]
fn sigterm_drains_a_running_stream() {
    let provider = Provider::start();
    let mut gateway = Gateway::in_front_of(provider.address()).server("drain_seconds = 20").start();
    let running = run_stream(gateway.plain_address());
    let running_http2 = run_http2_stream(&gateway);
    under_way(&provider, 2);
    assert_eq!(gateway.admin("/readyz").status, 200);
    let stopped = Instant::now();
    gateway.signal(Signal::TERM);
    wait_for("a readyz that says no, or a closed door", Duration::from_secs(3), || {
        (!gateway.ready()).then_some(())
    });
    assert_whole(&running.join().expect("the stream's thread"));
    let (status, body, ended) = running_http2.join().expect("the stream's thread");
    assert_eq!((status, Some(body), ended), (200, streams::read(STREAM), true));
    let status = gateway.wait(Duration::from_secs(22)).expect("an end within the drain time");
    assert!(status.success(), "{status}\n{}", gateway.stderr());
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(15), "nothing was left to do, and it took {took:?}");
    assert!(std::net::TcpStream::connect(gateway.plain_address()).is_err());
}

/// A stream that never ends does not hold the process for ever.
#[test]
fn sigterm_ends_after_the_drain_time() {
    let provider = Provider::start();
    let mut gateway = Gateway::in_front_of(provider.address()).server("drain_seconds = 2").start();
    let address = gateway.plain_address();
    let endless =
        std::thread::spawn(move || http1::plain(address, &request("size=1000;stall=500")));
    under_way(&provider, 1);
    gateway.signal(Signal::TERM);
    let status = gateway.wait(Duration::from_secs(15));
    assert!(status.is_some(), "it still runs\n{}", gateway.stderr());
    assert!(!endless.join().expect("the stream's thread").complete);
}

/// SIGINT is the impatient operator's stop.
#[test]
fn sigint_stops_at_once() {
    let provider = Provider::start();
    let mut gateway = Gateway::in_front_of(provider.address()).server("drain_seconds = 30").start();
    gateway.signal(Signal::INT);
    assert!(gateway.wait(Duration::from_secs(5)).is_some(), "it still runs");
}

#[test]
fn a_new_certificate_without_a_dropped_connection() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    let mut kept = http1::connect_tls(gateway.tls_address(), &tls);
    assert_eq!(http1::exchange(&mut kept, &get("/before", true)).status, 200);
    let first = leaf(&kept);
    let running = run_stream(gateway.plain_address());

    let second = gateway.replace_certificate("second");
    assert_ne!(first, second.der.to_vec());
    wait_for("the new certificate", Duration::from_secs(10), || {
        let mut fresh = http1::connect_tls(gateway.tls_address(), &tls);
        assert_eq!(http1::exchange(&mut fresh, &get("/probe", false)).status, 200);
        (leaf(&fresh) == second.der.to_vec()).then_some(())
    });
    assert_eq!(http1::exchange(&mut kept, &get("/after", true)).status, 200, "the old connection");
    assert_whole(&running.join().expect("the stream's thread"));
    assert!(gateway.metric("stillgate_certificate_reloads_total{outcome=\"ok\"") >= 1.0);
}

/// A certificate file that is no certificate changes nothing.
#[test]
fn a_bad_certificate_keeps_the_old_one() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let file = gateway.folder().join("chain.pem");
    std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
        .expect("a written file");
    wait_for("a counted failure", Duration::from_secs(10), || {
        let failed = "stillgate_certificate_reloads_total{outcome=\"failed\"";
        (gateway.metric(failed) >= 1.0).then_some(())
    });
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    assert_eq!(http1::tls(gateway.tls_address(), &tls, &get("/", false)).status, 200);
    // And a good one after it is taken.
    let good = gateway.replace_certificate("third");
    wait_for("the good certificate", Duration::from_secs(10), || {
        let tls = gateway.authority().tls_client(&["http/1.1"]);
        let mut fresh = http1::connect_tls(gateway.tls_address(), &tls);
        let _ = http1::exchange(&mut fresh, &get("/", false));
        (leaf(&fresh) == good.der.to_vec()).then_some(())
    });
}

/// A new process takes the listeners over: no request fails, running streams end at the old one.
#[test]
fn hot_upgrade() {
    let provider = Provider::start();
    let mut gateway = Gateway::in_front_of(provider.address()).server("drain_seconds = 20").start();
    let running = run_stream(gateway.plain_address());
    let running_http2 = run_http2_stream(&gateway);
    under_way(&provider, 2);
    let load = Load::start(gateway.plain_address());
    let mut old = gateway.upgrade();
    assert_whole(&running.join().expect("the stream's thread"));
    let (status, body, ended) = running_http2.join().expect("the stream's thread");
    assert_eq!((status, Some(body), ended), (200, streams::read(STREAM), true));
    let status = old.wait(Duration::from_secs(25)).expect("the old process ends");
    assert!(status.success(), "{status}\n{}", old.stderr());
    wait_for("a new process that is ready", Duration::from_secs(10), || {
        gateway.ready().then_some(())
    });
    let before = load.done();
    wait_for("requests at the new process", Duration::from_secs(10), || {
        (load.done() > before + 20).then_some(())
    });
    let (done, failed) = load.stop();
    let log = old.stderr();
    assert!(failed.is_empty(), "{} of {done} requests failed: {failed:?}\n{log}", failed.len());
    assert!(done > 50, "only {done} requests were made");
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    assert_eq!(http1::tls(gateway.tls_address(), &tls, &get("/after", false)).status, 200);
    gateway.signal(Signal::TERM);
    let status = gateway.wait(Duration::from_secs(25)).expect("the new process ends");
    assert!(status.success(), "{status}\n{}", gateway.stderr());
}

/// Requests one after the other, each on a fresh connection, until stopped.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match std::net::TcpStream::connect(address) {
                    Err(error) => failed.push(error.to_string()),
                    Ok(mut stream) => {
                        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
                        let response = http1::exchange(&mut stream, &get("/load", false));
                        if response.status != 200 || !response.complete {
                            failed.push(format!("{response:?}"));
                        }
                    }
                }
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
            failed
        });
        Self { stop, done, thread }
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.thread.join().expect("the load's thread");
        (self.done.load(Ordering::Relaxed), failed)
    }
}

fn run_stream(address: SocketAddr) -> JoinHandle<Response> {
    std::thread::spawn(move || http1::plain(address, &request(PACED)))
}

fn run_http2_stream(gateway: &Gateway) -> JoinHandle<(u16, Vec<u8>, bool)> {
    let tls = gateway.authority().tls_client(&["h2"]);
    let address = gateway.tls_address();
    std::thread::spawn(move || {
        let stream = http1::connect_tls(address, &tls);
        let mut connection = http2::Connection::open(stream, &[]);
        let mut fields = http2::get("/stream");
        fields.push(("x-provider".to_owned(), PACED.to_owned()));
        connection.send(&http2::request(1, &fields));
        connection.settle(&[1]);
        let answer = connection.answer(1);
        (answer.status, answer.body, answer.ended)
    })
}

/// Waits until the provider is answering so many requests.
fn under_way(provider: &Provider, count: usize) {
    wait_for("requests at the provider", Duration::from_secs(10), || {
        (provider.received().len() >= count).then_some(())
    });
    std::thread::sleep(Duration::from_millis(300));
}

fn assert_whole(response: &Response) {
    assert_eq!((response.status, response.complete), (200, true), "{}", response.text());
    assert_eq!(Some(response.body.clone()), streams::read(STREAM));
}

fn request(directive: &str) -> Vec<u8> {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-provider: {directive}\r\n\
         content-length: 2\r\nconnection: close\r\n\r\n{{}}"
    )
    .into_bytes()
}

fn get(path: &str, keep: bool) -> Vec<u8> {
    let connection = if keep { "keep-alive" } else { "close" };
    format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: {connection}\r\n\r\n").into_bytes()
}

fn leaf(stream: &TlsStream) -> Vec<u8> {
    let chain = stream.conn.peer_certificates().expect("a certificate");
    chain[0].to_vec()
}
