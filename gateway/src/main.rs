//! The `stillgate` binary; everything is in the library beside it.

// Each exchange makes and drops a few hundred small objects, on many threads at once.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    gateway::cli::main()
}
