#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::proxy::framing::fuzz_head(data));
