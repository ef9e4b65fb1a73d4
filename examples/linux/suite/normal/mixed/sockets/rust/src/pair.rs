//! Two sockets that are connected from their birth: what goes in comes out, and the end of one is seen by the other.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => println!("PASS: pair"),
        Err(error) => {
            println!("FAIL: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run() -> io::Result<()> {
    let (mut here, mut there) = UnixStream::pair()?;
    here.write_all(b"to and fro")?;
    let mut heard = [0; 10];
    there.read_exact(&mut heard)?;
    drop(here);
    let more = there.read(&mut [0; 1])?;
    if &heard != b"to and fro" || more != 0 {
        return Err(io::Error::other(format!("heard {heard:?} and {more} more")));
    }
    there.write_all(b"x").map_or_else(
        |error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) },
        |()| Err(io::Error::other("nobody reads, and the write did not fail")),
    )
}
