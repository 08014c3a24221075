#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::wire::fuzz_rewrite(data));
