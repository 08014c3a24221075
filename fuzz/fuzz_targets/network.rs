#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::network::fuzz_network(data));
