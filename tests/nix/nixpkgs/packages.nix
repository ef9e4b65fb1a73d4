# The packages of nixpkgs that qcase's flake asks for, and the builders.
{ system }:
let
  lib = import ./lib.nix;
  host = import ./host.nix;

  # A build by the machine's own shell, without a sandbox.
  build =
    name: attributes: script:
    derivation (
      {
        inherit name system;
        builder = "/bin/sh";
        args = [ "-euc" script ];
        PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";
      }
      // attributes
    );

  # Programs of the machine under the name of a package, and files at the places where nixpkgs has them.
  taken =
    name: programs: files:
    build name { } ''
      mkdir -p $out/bin
      for program in ${builtins.concatStringsSep " " programs}; do
        ln -s "$(command -v "$program")" $out/bin/
      done
      ${builtins.concatStringsSep "\n" (
        lib.mapAttrsToList (to: from: ''mkdir -p "$(dirname "$out/${to}")"; ln -s ${from} $out/${to}'') files
      )}
    '';

  # As nixpkgs has it: what is called gets functions beside its own attributes.
  overridable =
    make: arguments:
    make arguments
    // {
      override = changes: overridable make (arguments // changes);
      overrideDerivation = change: derivation ((make arguments).drvAttrs // change (make arguments).drvAttrs);
    };

  packages = rec {
    inherit lib;

    callPackage =
      path: given:
      let
        wanted = builtins.functionArgs (import path);
        known = builtins.intersectAttrs wanted packages;
      in
      overridable (import path) (known // given);

    # For a function that returns a set of packages.
    callPackages =
      path: given:
      let
        wanted = builtins.functionArgs (import path);
        all = (builtins.intersectAttrs wanted packages) // given;
      in
      builtins.mapAttrs (name: _: overridable (all: (import path all).${name}) all) (import path all);

    qemu = taken "qemu" [ "qemu-system-x86_64" "qemu-system-aarch64" "qemu-img" ] { "share/qemu" = "/usr/share/qemu"; };
    mmdebstrap = taken "mmdebstrap" [ "mmdebstrap" ] { };
    docker-client = taken "docker-client" [ "docker" ] { };
    e2fsprogs = taken "e2fsprogs" [ "mke2fs" ] { };
    git = taken "git" [ "git" ] { };
    gnumake = taken "gnumake" [ "make" ] { };
    strace = taken "strace" [ "strace" ] { };
    python3 = taken "python3" [ host.python ] { };
    # Called .pgp since 2025.1; Debian 12 has an older one.
    debian-archive-keyring = taken "debian-archive-keyring" [ ] {
      "share/keyrings/debian-archive-keyring.pgp" = "/usr/share/keyrings/debian-archive-keyring.gpg";
    };
    OVMF =
      let
        # Debian has them for 4 MiB of flash alone since 13.
        fd = build "OVMF" { } ''
          mkdir -p $out/FV
          for name in OVMF_CODE OVMF_VARS; do
            for file in /usr/share/OVMF/$name.fd /usr/share/OVMF/''${name}_4M.fd; do
              [ ! -e "$file" ] || ln -sf "$file" $out/FV/$name.fd
            done
          done
        '';
      in
      {
        firmware = "${fd}/FV/OVMF_CODE.fd";
        variables = "${fd}/FV/OVMF_VARS.fd";
      };

    stdenv.hostPlatform.qemuArch = builtins.head (builtins.split "-" system);

    writeTextDir =
      name: text:
      build "text" { inherit text; passAsFile = [ "text" ]; } ''mkdir -p $out && cp "$textPath" $out/${name}'';

    runCommand =
      name: { nativeBuildInputs }: script:
      build name { PATH = "${lib.makeBinPath nativeBuildInputs}:/usr/bin:/bin"; } ''
        TMPDIR=$PWD
        ${script}
      '';

    mkShell =
      { packages, env }:
      build "shell" ({ PATH = "${lib.makeBinPath packages}:/usr/bin:/bin"; } // env) "mkdir $out";

    python3Packages =
      builtins.listToAttrs (
        map (name: {
          inherit name;
          value = "python3Packages.${name}";
        }) host.pythonPackages
      )
      // {
        buildPythonApplication =
          {
            pname,
            version,
            pyproject,
            src,
            build-system,
            dependencies,
            env,
            makeWrapperArgs,
            pythonImportsCheck,
            passthru,
            meta,
          }:
          assert pyproject && build-system == [ "python3Packages.hatchling" ];
          build "${pname}-${version}"
            (
              env
              // {
                inherit src dependencies;
                PYTHON = host.python;
                HOST_PATH = host.pythonPath;
                WRAPPER_ARGS = map toString makeWrapperArgs;
              }
            )
            ''
              cp -r $src source && chmod -R u+w source && cd source
              $PYTHON -m hatchling build -t wheel -d ../dist
              $PYTHON -m pip install -q --no-deps --no-index --prefix=$out --no-warn-script-location --ignore-installed ../dist/*.whl
              # As nixpkgs does it: the program is a script that knows where its modules are, and what it starts does not.
              places="$(echo $out/lib/python3*/site-packages):$HOST_PATH"
              printf '#!%s -IS\nimport sys\nsys.path.extend("%s".split(":"))\nfrom qcase.cli.main import program\nprogram()\n' \
                "$PYTHON" "$places" >$out/bin/.qcase-wrapped
              chmod +x $out/bin/.qcase-wrapped
              $PYTHON -IS -c "import sys; sys.path.extend('$places'.split(':')); import ${builtins.concatStringsSep ", " pythonImportsCheck}"
              # makeWrapper, as far as it is called here.
              set -- $WRAPPER_ARGS
              {
                echo "#!/bin/sh"
                while [ $# -gt 0 ]; do
                  case $1 in
                    --prefix) echo "$2='$4'\''${$2:+'$3'\$$2}; export $2"; shift 4 ;;
                    --set-default) echo "$2=\''${$2-'$3'}; export $2"; shift 3 ;;
                    *) echo "makeWrapper: $1 is not known to the stand-in" >&2; exit 1 ;;
                  esac
                done
                echo "exec $out/bin/.qcase-wrapped \"\$@\""
              } >$out/bin/qcase
              chmod +x $out/bin/qcase
            ''
          // passthru
          // {
            inherit version meta;
          };
      };
  };
in
packages
