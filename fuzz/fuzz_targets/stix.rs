#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::ioc::stix::fuzz_stix(data));
