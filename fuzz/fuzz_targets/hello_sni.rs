#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sensor::hello::fuzz_hello_sni(data));
