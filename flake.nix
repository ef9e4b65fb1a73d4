{
  description = "Runs the test cases of an operating system in QEMU, hermetically";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      each = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system} self.packages.${system}.qcase);
      # What `qcase --version` shows. A tree with changes of its own has no revision, but newer versions of Nix name the one below.
      commit =
        if self ? rev then
          builtins.substring 0 12 self.rev
        else if self ? dirtyRev then
          "${builtins.substring 0 12 self.dirtyRev}-edited"
        else
          "";
    in
    {
      packages = each (
        pkgs: _: rec {
          qcase = pkgs.callPackage ./nix/package.nix { inherit commit; };
          default = qcase;
        }
      );

      apps = each (
        _: package: rec {
          qcase = {
            type = "app";
            program = "${package}/bin/qcase";
          };
          default = qcase;
        }
      );

      devShells = each (pkgs: qcase: { default = pkgs.callPackage ./nix/shell.nix { inherit qcase; }; });

      # callPackage would put `override` among the checks.
      checks = each (pkgs: qcase: pkgs.callPackages ./nix/checks.nix { inherit qcase; });
    };
}
