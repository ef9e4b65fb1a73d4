# qcase with QEMU, firmware, and what makes the base of the toolchain images, so that a machine needs an engine and nothing else.
{
  lib,
  python3Packages,
  qemu,
  OVMF,
  writeTextDir,
  stdenv,
  mmdebstrap,
  debian-archive-keyring,
  commit ? "",
}:
let
  inherit (lib.importTOML ../pyproject.toml) project;

  # "qemu.qmp>=0.0.3" → qemu-qmp: the dependencies stand in pyproject.toml alone.
  attribute =
    requirement:
    let
      name = builtins.head (builtins.match "([A-Za-z0-9._-]+).*" requirement);
    in
    builtins.replaceStrings [ "." "_" ] [ "-" "-" ] (lib.toLower name);

  # A description as QEMU's own: OVMF is for the machine's own architecture, QEMU's own firmware for the others.
  ovmf = writeTextDir "50-ovmf.json" (
    builtins.toJSON {
      description = "UEFI firmware of nixpkgs";
      interface-types = [ "uefi" ];
      mapping = {
        device = "flash";
        executable = {
          filename = OVMF.firmware;
          format = "raw";
        };
        nvram-template = {
          filename = OVMF.variables;
          format = "raw";
        };
      };
      targets = [
        {
          architecture = stdenv.hostPlatform.qemuArch;
          machines = [
            "pc-q35-*"
            "virt-*"
          ];
        }
      ];
      features = [ ];
      tags = [ ];
    }
  );

  environment = {
    QCASE_FIRMWARE_PATH = "${ovmf}:${qemu}/share/qemu/firmware";
    QCASE_DEBIAN_KEYRING = "${debian-archive-keyring}/share/keyrings/debian-archive-keyring.pgp";
  };
in
python3Packages.buildPythonApplication {
  pname = project.name;
  version = builtins.head (builtins.elemAt (builtins.split ''__version__ = "([^"]*)"'' (builtins.readFile ../qcase/__init__.py)) 1);
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../qcase
      ../images
      ../share
      ../hatch_build.py
      ../pyproject.toml
      ../README.md
      ../LICENSE
    ];
  };

  build-system = [ python3Packages.hatchling ];
  dependencies = map (requirement: python3Packages.${attribute requirement}) project.dependencies;

  env.QCASE_COMMIT = commit;

  # Nothing of the caller's PATH comes before: the same QEMU everywhere. What the caller set for firmware and keyring wins.
  makeWrapperArgs = [
    "--prefix"
    "PATH"
    ":"
    (lib.makeBinPath [
      qemu
      mmdebstrap
    ])
  ]
  ++ lib.concatLists (
    lib.mapAttrsToList (name: value: [
      "--set-default"
      name
      value
    ]) environment
  );

  passthru = { inherit environment; };

  pythonImportsCheck = [ "qcase.cli.main" ];

  meta = {
    inherit (project) description;
    license = lib.licenses.asl20;
    mainProgram = "qcase";
    platforms = lib.platforms.linux;
  };
}
