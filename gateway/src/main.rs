//! The `stillgate` binary; everything is in the library beside it.

fn main() -> std::process::ExitCode {
    gateway::cli::main()
}
