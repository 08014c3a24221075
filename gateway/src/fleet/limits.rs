//! What gateways tell each other of the use of limits: a stream of reports that nobody keeps.
//!
//! A report is a list of cells, each as four numbers of eight bytes, little endian: the cell, and
//! what was let through of its three allowances. A cell is a keyed hash of the limit and of whose
//! use it is.

use redis::Cmd;

use super::words::Keys;
use crate::enforce::throttle::Used;
use crate::limits::{FLEET_USED_CELLS_MAX, FLEET_USED_MAX};

const BYTES: usize = 32;

/// The stream of reports.
pub(super) fn stream(keys: &Keys) -> String {
    keys.shared("used")
}

/// The reports of what was let through.
pub(super) fn reports<'a>(
    keys: &Keys,
    node: &'a str,
    used: &'a [Used],
) -> impl Iterator<Item = Cmd> + use<'a> {
    let stream = stream(keys);
    used.chunks(FLEET_USED_CELLS_MAX).map(move |some| {
        let mut command = redis::cmd("XADD");
        command.arg(&stream).arg("MAXLEN").arg("~").arg(FLEET_USED_MAX).arg("*");
        command.arg("g").arg(node).arg("u").arg(encode(some));
        command
    })
}

fn encode(used: &[Used]) -> Vec<u8> {
    let numbers = |used: &Used| {
        let [requests, input, output] = used.ns.map(i64::to_le_bytes);
        [used.cell.to_le_bytes(), requests, input, output].concat()
    };
    used.iter().flat_map(numbers).collect()
}

/// What a report tells; `None` where it is none.
pub(super) fn decode(report: &[u8]) -> Option<Vec<Used>> {
    if report.len() > BYTES * FLEET_USED_CELLS_MAX || !report.len().is_multiple_of(BYTES) {
        return None;
    }
    let used = |bytes: &[u8]| {
        let at = |place: usize| bytes.get(place * 8..place * 8 + 8)?.try_into().ok();
        let [requests, input, output] = [at(1)?, at(2)?, at(3)?].map(i64::from_le_bytes);
        Some(Used { cell: u64::from_le_bytes(at(0)?), ns: [requests, input, output] })
    };
    report.chunks_exact(BYTES).map(used).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_report_comes_back_as_it_went(cells in proptest::collection::vec(
            (any::<u64>(), any::<[i64; 3]>()), 0..50,
        )) {
            let used: Vec<Used> = cells.into_iter().map(|(cell, ns)| Used { cell, ns }).collect();
            prop_assert_eq!(decode(&encode(&used)), Some(used));
        }

        #[test]
        fn nothing_from_outside_panics(report in any::<Vec<u8>>()) {
            let told = decode(&report);
            prop_assert_eq!(told.is_some(), report.len() % BYTES == 0);
        }
    }
}
