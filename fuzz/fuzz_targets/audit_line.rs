#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway::audit::fuzz_audit_line(data));
