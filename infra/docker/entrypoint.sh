#!/bin/sh
# Turns every secret whose file is named like an environment variable into that variable, then runs the command.
# A secret that is missing or short is a default that somebody forgot to replace: nothing starts with it.
set -eu
for file in "${SECRETS:-/run/secrets}"/[A-Z]*; do
    [ -e "$file" ] || continue
    name=$(basename "$file")
    value=$(cat "$file")
    if [ "${#value}" -lt 24 ]; then
        echo "error: the secret $name has fewer than 24 characters; make secrets with infra/iam/make_secrets.py." >&2
        exit 1
    fi
    export "$name=$value"
done
exec "$@"
