#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| detectors::watermark::fuzz_watermark(data));
