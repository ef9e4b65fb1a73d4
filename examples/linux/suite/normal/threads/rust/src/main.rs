//! Threads through Rust's standard library: a lock, a condition variable, a channel, thread-local data, and a panic that is
//! caught where its thread is joined.

use std::cell::Cell;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

thread_local! {
    static OWN: Cell<u32> = const { Cell::new(0) };
}

fn main() {
    let results = [
        ("lock", lock()),
        ("condition", condition()),
        ("channel", channels()),
        ("local", local()),
        ("panic", panicking()),
    ];
    for (name, ok) in results {
        println!("{}: {name}", if ok { "PASS" } else { "FAIL" });
    }
    if results.iter().all(|(_, ok)| *ok) {
        println!("PASS: threads");
    }
}

/// Eight threads count to 80,000 together.
fn lock() -> bool {
    let count = Mutex::new(0u32);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10_000).for_each(|_| *count.lock().unwrap() += 1));
        }
    });
    count.into_inner().unwrap() == 80_000
}

/// Two threads take turns.
fn condition() -> bool {
    let turn = Arc::new((Mutex::new(0u32), Condvar::new()));
    let other = Arc::clone(&turn);
    let odd = thread::spawn(move || take_turns(&other, 1));
    let even = take_turns(&turn, 0);
    odd.join().is_ok_and(|count| count == 100 && even == 100)
}

fn take_turns((turn, changed): &(Mutex<u32>, Condvar), mine: u32) -> u32 {
    let mut taken = 0;
    let mut now = turn.lock().unwrap();
    while taken < 100 {
        now = changed.wait_while(now, |now| *now % 2 != mine).unwrap();
        *now += 1;
        taken += 1;
        changed.notify_all();
    }
    taken
}

fn channels() -> bool {
    let (sender, receiver) = channel();
    for thread in 0..4u64 {
        let sender = sender.clone();
        thread::spawn(move || (0..1000).for_each(|n| sender.send(thread * 1000 + n).unwrap()));
    }
    drop(sender);
    receiver.iter().sum::<u64>() == (0..4000).sum()
}

fn local() -> bool {
    OWN.set(7);
    let other = thread::spawn(|| OWN.get()).join();
    OWN.get() == 7 && other.is_ok_and(|value| value == 0)
}

fn panicking() -> bool {
    std::panic::set_hook(Box::new(|_| ()));
    thread::spawn(|| panic!("on purpose")).join().is_err()
}
