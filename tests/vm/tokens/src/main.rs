// Parses Rust in the guest: outside of a macro, proc-macro2 does it by itself, but links rustc's own proc_macro all the same.
fn main() {
    let stream: proc_macro2::TokenStream = "a + b".parse().expect("three tokens");
    println!("{} {}", stream.clone().into_iter().count(), stream);
}
