#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::capture::client_hello::fuzz_client_hello(data));
