#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sensor::quic::fuzz_quic_initial(data));
