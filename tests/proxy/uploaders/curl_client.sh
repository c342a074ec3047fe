#!/bin/sh
# Uploads with curl: prints a line `CLIENT MODE SIZE STATUS` for each. Arguments: URL SIZE...
url=$1; shift
for size in "$@"; do
  send() { mode=$1; shift; printf 'curl %s %s %s\n' "$mode" "$size" \
    "$(head -c "$size" /dev/zero | curl -sk -o /dev/null -w '%{http_code}' --max-time 60 --data-binary @- "$@" "$url")"; }
  send keep-alive -H 'Expect:'
  send close -H 'Expect:' -H 'Connection: close'
  send chunked -H 'Expect:' -H 'Transfer-Encoding: chunked'
  send expect -H 'Expect: 100-continue'
done
