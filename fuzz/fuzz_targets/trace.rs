#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::trace::fuzz_trace(data));
