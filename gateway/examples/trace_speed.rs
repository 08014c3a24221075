//! How fast a trace is read: `cargo run --release -p stillgate --example trace_speed -- FILE...`

use std::path::Path;
use std::time::{Duration, Instant};

use detectors::Event;
use gateway::trace::TraceReader;

// As in the binary, since most of what a line costs beside its parsing is memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args().skip(1) {
        let begun = Instant::now();
        let (mut requests, mut others, mut wrong) = (0_u64, 0_u64, 0_u64);
        for item in TraceReader::open(Path::new(&path))? {
            match item {
                Ok(Event::Exchange(_)) => requests += 1,
                Ok(_) => others += 1,
                Err(error) => {
                    if wrong < 10 {
                        eprintln!("{error}");
                    }
                    wrong += 1;
                }
            }
        }
        let took = begun.elapsed();
        let lines = requests + others + wrong;
        let each = took.checked_div(u32::try_from(lines)?).unwrap_or(Duration::ZERO);
        let rate = lines as f64 / took.as_secs_f64();
        println!(
            "{path}: {requests} requests, {others} others, {wrong} wrong in {took:.2?}: \
             {rate:.0} lines/s, {each:.2?} each"
        );
    }
    Ok(())
}
