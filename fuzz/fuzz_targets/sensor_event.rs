#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sensor::classify::fuzz_sensor_event(data));
