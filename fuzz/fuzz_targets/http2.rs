#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::capture::http2::fuzz_http2(data));
