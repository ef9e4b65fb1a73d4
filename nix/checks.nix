# What can be seen in a build: no engine, no network, no guest.
{ runCommand, qcase }:
{
  package = qcase;

  version = runCommand "qcase-version" { nativeBuildInputs = [ qcase ]; } ''
    qcase --version | tee $out
    grep -q '^qcase ${qcase.version}' $out
  '';

  examples = runCommand "qcase-examples" { nativeBuildInputs = [ qcase ]; } ''
    export HOME=$TMPDIR
    qcase list --workspace ${../examples/linux} | tee $out
    grep -q smoke $out
  '';
}
