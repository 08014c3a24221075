#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sensor::dns::fuzz_dns(data));
