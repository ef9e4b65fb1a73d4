//! A server and its clients on a Unix socket that has a name.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::thread;

const NAME: &str = "/tmp/test-unix.socket";

fn main() -> ExitCode {
    let _ = fs::remove_file(NAME);
    let done = run();
    let _ = fs::remove_file(NAME);
    match done {
        Ok(()) => println!("PASS: unix"),
        Err(error) => {
            println!("FAIL: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run() -> io::Result<()> {
    let listener = UnixListener::bind(NAME)?;
    let server = thread::spawn(move || -> io::Result<()> {
        for client in listener.incoming().take(8) {
            let mut client = client?;
            let mut said = String::new();
            client.read_to_string(&mut said)?;
            client.write_all(said.to_uppercase().as_bytes())?;
        }
        Ok(())
    });
    for number in 0..8 {
        let mut client = UnixStream::connect(NAME)?;
        write!(client, "client {number}")?;
        client.shutdown(std::net::Shutdown::Write)?;
        let mut heard = String::new();
        client.read_to_string(&mut heard)?;
        if heard != format!("CLIENT {number}") {
            return Err(io::Error::other(format!("heard {heard:?}")));
        }
    }
    server.join().map_err(|_| io::Error::other("the server died"))?
}
