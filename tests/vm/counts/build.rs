use std::{env, path::PathBuf};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    let tally = pkg_config::Config::new().atleast_version("1.0").probe("tally").unwrap();
    cc::Build::new().file("sizes.c").includes(&tally.include_paths).warnings_into_errors(true).compile("sizes");
    cc::Build::new().cpp(true).file("catches.cc").compile("catches");
    bindgen::Builder::default()
        .header("all.h")
        .clang_args(tally.include_paths.iter().map(|path| format!("-I{}", path.display())))
        .allowlist_function("tally_add|size_of_.*|catches")
        .allowlist_type("stat|regs")
        .allowlist_var("STEP")
        .generate()
        .unwrap()
        .write_to_file(out.join("bindings.rs"))
        .unwrap();
}
