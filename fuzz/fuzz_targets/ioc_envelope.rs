#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::ioc::sign::fuzz_envelope(data));
