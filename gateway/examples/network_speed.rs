//! How fast an address is looked up: `cargo run --release -p stillgate --example network_speed`,
//! with the path of an ASN database after `--` for the time with one.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Instant;

use gateway::network::{NetworkFiles, NetworkStore};

const LOOKUPS: u32 = 5_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let asn_database = std::env::args().nth(1).map(PathBuf::from);
    let begun = Instant::now();
    let store = NetworkStore::load(NetworkFiles { asn_database, ..NetworkFiles::default() })
        .map_err(|errors| format!("{errors:?}"))?;
    println!("{store:?} loaded in {:.1?}", begun.elapsed());
    let begun = Instant::now();
    let mut known = 0_u32;
    for number in 0..LOOKUPS {
        // An odd multiplier visits addresses in no order.
        let ip = Ipv4Addr::from_bits(number.wrapping_mul(0x9e37_79b9));
        known += u32::from(black_box(store.lookup(black_box(ip).into())).asn != 0);
    }
    println!("{:.0?} a lookup, {known} of {LOOKUPS} known", begun.elapsed() / LOOKUPS);
    Ok(())
}
