#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::sensor::report::fuzz_report(data));
