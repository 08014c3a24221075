//! The `stillgate-sensor` binary; everything is in the library beside it.

fn main() -> std::process::ExitCode {
    sensor::cli::main()
}
