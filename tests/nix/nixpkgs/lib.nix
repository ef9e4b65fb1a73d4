# The functions of nixpkgs' `lib` that qcase's flake calls.
let
  inherit (builtins)
    any
    attrNames
    concatStringsSep
    fromTOML
    isAttrs
    listToAttrs
    map
    readFile
    replaceStrings
    stringLength
    substring
    ;
  letters = text: builtins.genList (n: substring n 1 text) (stringLength text);
in
rec {
  genAttrs = names: make: listToAttrs (map (name: { inherit name; value = make name; }) names);
  mapAttrsToList = make: set: map (name: make name set.${name}) (attrNames set);
  concatLists = builtins.concatLists;
  importTOML = path: fromTOML (readFile path);
  toLower = replaceStrings (letters "ABCDEFGHIJKLMNOPQRSTUVWXYZ") (letters "abcdefghijklmnopqrstuvwxyz");
  makeBinPath = packages: concatStringsSep ":" (map (package: "${package}/bin") packages);
  licenses.asl20 = { spdxId = "Apache-2.0"; };
  platforms.linux = [ "x86_64-linux" "aarch64-linux" ];

  fileset = {
    unions = paths: map toString paths;
    toSource =
      { root, fileset }:
      builtins.path {
        path = root;
        name = "source";
        # Below one of the paths, or above one.
        filter = path: _: any (wanted: path == wanted || within wanted path || within path wanted) fileset;
      };
  };
  within = folder: path: substring 0 (stringLength folder + 1) path == "${folder}/";
}
