#!/bin/sh
# Requests made from the server's own OpenAPI document: none may be answered with 5xx, nor with a status that the document does not name.
#   pip install schemathesis
#   tests/serve/schemathesis.sh target/release/sd-gen [REQUESTS]
# 10,000 requests are about 100 for each of the operations; those that have less to vary get fewer, so that more are asked for.
set -eu
program=$(realpath "$1")
requests=${2:-10000}
folder=$(mktemp -d)
cd "$folder"
# Small and few, so that the queue empties as fast as it fills.
"$program" serve --listen 127.0.0.1:0 --output-dir served --size 64x64 --steps 1 --max-steps 2 --max-images 2 --max-pixels 16384 \
    --keep-jobs 50 -q > address 2> log &
server=$!
trap 'kill "$server" 2> /dev/null || true; rm -rf "$folder"' EXIT
while ! [ -s address ]; do sleep 0.1; done
url=$(sed 's,/$,,' address)
operations=$(curl --silent "$url/openapi.json" | python3 -c 'import json, sys; print(sum(len(item) for item in json.load(sys.stdin)["paths"].values()))')
# Streams have no end of their own.
schemathesis run "$url/openapi.json" --url "$url" --max-examples "$((requests * 5 / 2 / operations + 1))" --phases examples,fuzzing \
    --checks not_a_server_error,status_code_conformance,content_type_conformance --request-timeout 60 --suppress-health-check all \
    --exclude-path-regex '/(ws|events)$' --continue-on-failure --no-color
kill -0 "$server" || { echo "the server has ended:" >&2; cat log >&2; exit 1; }
answers=$(curl --silent "$url/metrics" | sed -n 's/^sd_gen_http_answers_total{[^}]*} //p' | awk '{ all += $1 } END { print all }')
echo "$answers requests were answered"
[ "$answers" -ge "$requests" ] || { echo "they were to be $requests" >&2; exit 1; }
! grep -i panicked log
