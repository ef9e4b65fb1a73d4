#[allow(dead_code, non_camel_case_types, non_upper_case_globals)]
mod c {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

fn main() {
    let count = unsafe { c::tally_add(40) + c::tally_add(c::STEP as i32) };
    let sizes = (std::mem::size_of::<c::stat>(), std::mem::size_of::<c::regs>());
    let of_c = unsafe { (c::size_of_stat() as usize, c::size_of_regs() as usize) };
    println!("{count} {} {}", sizes == of_c, unsafe { c::catches() });
}
