# What `make` needs: `make setup` finds all of it here, and makes its virtual environment from PyPI as everywhere.
{
  mkShell,
  python3,
  qemu,
  mmdebstrap,
  docker-client,
  e2fsprogs,
  git,
  gnumake,
  strace,
  qcase,
}:
mkShell {
  packages = [
    python3
    qemu
    mmdebstrap
    docker-client
    e2fsprogs
    git
    gnumake
    strace
  ];
  env = qcase.environment;
}
