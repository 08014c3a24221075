#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::config::file::fuzz_config(data));
