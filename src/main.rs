//! The `contrastream` program: parses the command line and hands over to the library.

fn main() -> std::process::ExitCode {
    contrastream::cli::main()
}
