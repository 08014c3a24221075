//! The fake model API: reads each request in full and answers as its query asks.
//!
//! Raw sockets and rendered answers on one thread, so that it is not what is measured.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use stand::answer::{Kind, Rendered};
use stand::http1::{Body, Head, Start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// Different answers that are kept rendered.
const KINDS_MAX: usize = 64;

#[derive(Parser)]
#[command(about = "A fake model API")]
struct Options {
    /// Address to listen on.
    #[arg(long)]
    listen: SocketAddr,
}

type Answers = Arc<Mutex<HashMap<String, Arc<Answer>>>>;

/// A rendered answer and how it is sent.
struct Answer {
    rendered: Rendered,
    pace: Duration,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(options.listen).await?;
        let answers = Answers::default();
        loop {
            let (socket, _) = listener.accept().await?;
            let answers = answers.clone();
            tokio::spawn(async move {
                // A proxy that goes away is no error here.
                let _ = serve(socket, &answers).await;
            });
        }
    })
}

async fn serve(mut socket: TcpStream, answers: &Answers) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut buffer = vec![0; 16 * 1024];
    let (mut start, mut end) = (0, 0);
    let mut last: Option<(String, Arc<Answer>)> = None;
    loop {
        let head = loop {
            if let Some((head, length)) = Head::parse(&buffer[start..end], Start::Request)? {
                start += length;
                break head;
            }
            if start > 0 {
                buffer.copy_within(start..end, 0);
                (start, end) = (0, end - start);
            }
            match socket.read(&mut buffer[end..]).await? {
                0 => return Ok(()),
                n => end += n,
            }
        };
        let mut body = Body::new(head.framing);
        while !body.is_done() {
            if start == end {
                (start, end) = (0, socket.read(&mut buffer).await?);
                if end == 0 {
                    return Ok(());
                }
            }
            start += body.read(&buffer[start..end], |_| {})?;
        }
        let target = head.target().unwrap_or_default();
        let answer = match &last {
            Some((asked, answer)) if asked == target => answer.clone(),
            _ => answer_for(target, answers).await,
        };
        send(&mut socket, &answer).await?;
        if head.close {
            return Ok(());
        }
        last = Some((target.to_owned(), answer));
    }
}

async fn answer_for(target: &str, answers: &Answers) -> Arc<Answer> {
    let Some(kind) = Kind::of_target(target) else {
        let first = &b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"[..];
        let rendered = Rendered { first: first.into(), paced: Vec::new(), body_bytes: 0 };
        return Arc::new(Answer { rendered, pace: Duration::ZERO });
    };
    let mut answers = answers.lock().await;
    if let Some(answer) = answers.get(target) {
        return answer.clone();
    }
    let pace = if let Kind::Paced { pace, .. } = kind { pace } else { Duration::ZERO };
    let answer = Arc::new(Answer { rendered: kind.render(), pace });
    if answers.len() < KINDS_MAX {
        answers.insert(target.to_owned(), answer.clone());
    }
    answer
}

async fn send(socket: &mut TcpStream, answer: &Answer) -> io::Result<()> {
    let mut due = Instant::now();
    let Some((first, others)) = answer.rendered.paced.split_first() else {
        return socket.write_all(&answer.rendered.first).await;
    };
    // The head leaves with the first event, as it does where the model's first token decides.
    socket.write_all(&[&answer.rendered.first[..], first].concat()).await?;
    for piece in others {
        due += answer.pace;
        sleep_until(due).await;
        socket.write_all(piece).await?;
    }
    Ok(())
}
