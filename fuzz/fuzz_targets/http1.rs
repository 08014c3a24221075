#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::capture::http1::fuzz_http1(data));
