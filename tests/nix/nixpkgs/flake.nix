# A stand-in for nixpkgs, as far as qcase's flake asks for it: the same functions and names, and packages that are made of
# the programs of this machine. `host.nix`, which the test writes beside it, says where they are.
{
  outputs = _: {
    lib = import ./lib.nix;
    legacyPackages = {
      x86_64-linux = import ./packages.nix { system = "x86_64-linux"; };
      aarch64-linux = import ./packages.nix { system = "aarch64-linux"; };
    };
  };
}
