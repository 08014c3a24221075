//! `stillgate-sensor`: the command line.

fn main() {}
