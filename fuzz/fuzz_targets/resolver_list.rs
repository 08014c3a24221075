#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sensor::resolvers::fuzz_resolver_list(data));
