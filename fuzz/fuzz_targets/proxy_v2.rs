#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::listener::proxy_protocol::fuzz_proxy_v2(data));
