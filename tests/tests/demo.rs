//! `stillgate demo` as a person sees it: a campaign climbs the tiers and goes, its neighbours notice
//! nothing, and the lines to paste work.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use harness::{binary, free_port, http1};
use rustix::process::{Pid, Signal, kill_process};

/// A demo under way, ended when it goes out of scope.
struct Demo {
    child: Child,
    lines: Receiver<String>,
    admin: SocketAddr,
}

impl Demo {
    fn start(options: &[&str]) -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut child = Command::new(binary())
            .args(["demo", "--listen", &listen.to_string(), "--admin", &admin.to_string()])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the stillgate binary starts");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (told, lines) = sync_channel(1_000);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if told.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, admin }
    }

    /// Everything that is printed up to this line.
    fn read_until(&self, last: &str, limit: Duration) -> Vec<String> {
        let end = Instant::now() + limit;
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    println!("{line}");
                    seen.push(line);
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {last:?} within {limit:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended before {last:?}"),
            }
            if seen.last().is_some_and(|line| line == last) {
                return seen;
            }
        }
    }

    /// Ends it, and finds that it leaves nothing behind.
    fn end(mut self, signal: Signal, lines: &[String]) {
        let ca = lines.iter().find_map(|line| line.trim().strip_prefix("CA file"));
        let ca = std::path::Path::new(ca.expect("a CA file").trim()).to_path_buf();
        assert!(ca.is_file(), "{} is not there", ca.display());
        kill_process(Pid::from_child(&self.child), signal).expect("a running process");
        let end = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < end, "it still runs after {signal:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let folder = ca.parent().expect("a folder");
        assert!(!folder.exists(), "{} is left after {signal:?}", folder.display());
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The cells of a row of the summary's table, those of `who` left out.
fn row<'l>(lines: &'l [String], who: &str) -> Vec<&'l str> {
    let found = lines.iter().find_map(|line| line.trim_start().strip_prefix(who));
    found.unwrap_or_else(|| panic!("no row of {who}")).split_whitespace().collect()
}

#[test]
fn the_campaign_goes_and_the_customers_notice_nothing() {
    let demo = Demo::start(&[]);
    let lines = demo.read_until("Ctrl-C ends it.", Duration::from_secs(85));
    let has = |part: &str| lines.iter().any(|line| line.contains(part));
    assert!(has("8 customers: 0 slowed, 0 marked, 0 refused;"), "customers were harmed");
    for who in ["chat user", "coding agent", "batch job in a cloud", "quiz on Gemini's API"] {
        let cells = row(&lines, who);
        let requests: usize = cells[1].parse().expect("a number");
        assert!(
            requests > 3 && cells[2..] == ["none", "0", "0", "0", "0", "0"],
            "{who}: {cells:?}"
        );
    }
    let cells = row(&lines, "the campaign");
    let number = |place: usize| -> usize { cells[place].parse().expect("a number") };
    assert_eq!(cells[2], "critical", "{cells:?}");
    assert!(number(3) > 5, "slowed: {cells:?}");
    assert!(number(4) > 0, "marked: {cells:?}");
    assert!(number(6) > 0, "refused: {cells:?}");
    assert!(number(7) >= 8, "suspended: {cells:?}");
    assert!(number(7) <= number(0), "{cells:?}");
    assert!(has(" takedown   cluster "), "no takedown was told");
    assert!(has(" fresh key  "), "the keys that came later were served");
    // Whom they name depends on how long the last answers were before they were ended.
    assert!(has("answers carry marks"));
    let screen = lines.iter().skip_while(|line| *line != "A campaign among customers");
    let screen = screen.take_while(|line| *line != "Try it").filter(|line| !line.contains("curl"));
    for line in screen {
        assert!(line.chars().count() <= 100, "wider than a hundred columns: {line}");
        assert!(!line.contains('\x1b'), "a colour where no terminal is: {line}");
    }

    let paste = lines.iter().find(|line| line.contains("-X DELETE")).expect("a line to undo it");
    let token = paste.split("Bearer ").nth(1).and_then(|rest| rest.split('\'').next());
    let path = paste.split(&demo.admin.to_string()).nth(1).expect("a path").trim_end_matches('\'');
    let request = format!(
        "DELETE {path} HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
        token.expect("a token")
    );
    let undone = http1::plain(demo.admin, request.as_bytes());
    assert_eq!((undone.status, undone.json()["status"].as_str()), (200, Some("undone")));
    demo.end(Signal::TERM, &lines);
}

#[test]
fn without_traffic_it_only_serves() {
    let demo = Demo::start(&["--no-traffic"]);
    let lines = demo.read_until("Ctrl-C ends it.", Duration::from_secs(30));
    assert!(!lines.iter().any(|line| line.contains("campaign")), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("curl --cacert ")), "{lines:?}");
    demo.end(Signal::INT, &lines);
}
